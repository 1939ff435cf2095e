"""Free memory is the least of what the machine and each control group leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaedeploy.system.memory import free_memory

MEMINFO = "MemTotal:       1000 kB\nMemFree:          10 kB\nMemAvailable:    800 kB\n"
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


GROUP = {"memory.max": "600000\n", "memory.current": "500000\n", "memory.stat": "anon 1\ninactive_file 150000\n"}
OLD = {
    "memory.limit_in_bytes": "600000",
    "memory.usage_in_bytes": "500000",
    "memory.stat": "inactive_file 7\ntotal_inactive_file 90000",
}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"proc/meminfo": MEMINFO}, 800 * 1024),
        ({}, None),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a/b\n"}, 800 * 1024),
        (
            {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", **{f"{V2}/{n}": t for n, t in GROUP.items()}},
            250000,
        ),
        (
            {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a/b\n", **{f"{V2}/a/{n}": t for n, t in GROUP.items()}},
            250000,
        ),
        (
            {"proc/self/cgroup": "0::/a/b\n", **{f"{V2}/{n}": t for n, t in GROUP.items()}},
            250000,
        ),
        (
            {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", **{f"{V2}/{n}": "max\n" for n in GROUP}},
            800 * 1024,
        ),
        (
            {"proc/self/cgroup": "4:cpu,memory:/a\n3:cpuset:/\n", **{f"{V1}/a/{n}": t for n, t in OLD.items()}},
            190000,
        ),
        (
            {"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "100", f"{V2}/memory.current": "200"},
            0,
        ),
    ],
    ids=["machine", "unknown", "no limit", "root", "above", "of a container", "max", "version 1", "beyond it"],
)
def test_the_least_that_is_left(files: dict[str, str], free: int | None, tmp_path: Path) -> None:
    assert free_memory(write(tmp_path, files)) == free


def test_this_machine_has_some() -> None:
    free = free_memory()
    assert free is None or free > 1 << 20
