"""How much memory this process may still take: what the machine has free, and what its containers' limits leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["LEAST_LIMIT", "free_memory", "meant_unit"]

LEAST_LIMIT = 2**20
"""The least bytes of a limit. A lower one is a slip: its unit was left out."""


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can take before memory is short; None on systems that do not say.

    Pages that only cache files count as free. root: where ``proc`` and ``sys`` are, for tests.
    """
    free = [left for left in (_machine(root), *_groups(root)) if left is not None]
    return max(0, min(free)) if free else None


def meant_unit(number: int) -> str | None:
    """The unit that was probably left out of a limit of ``number`` bytes: G, M, or None if it is not clear."""
    return "G" if number <= 256 else "M" if number < 2**16 else None


def _machine(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _groups(root: Path) -> Iterator[int | None]:
    """What is left of the limit of each control group that this process is in, of version 2 and of version 1."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            names, base = ("memory.max", "memory.current", "inactive_file"), root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "sys/fs/cgroup/memory"
        else:
            continue
        place = PurePosixPath(path.lstrip("/"))
        # In a container the path may be the host's, which does not exist here, so the root's files count as well.
        for folder in {base, *(base / part for part in (place, *place.parents))}:
            yield _left(folder, *names)


def _left(folder: Path, limit: str, used: str, cached: str) -> int | None:
    try:
        most, now = int((folder / limit).read_text()), int((folder / used).read_text())
    except (OSError, ValueError):  # there is no such group here, or its limit is "max"
        return None
    cache = (int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith(f"{cached} "))
    return most - now + next(cache, 0)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
