"""A disk that is full: the job ends in words, what is there is whole, and it goes on when there is room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from data_sets import content, data_set

import vaedeploy as vd
from vaedeploy.bundle import Bundle

MOUNTS = ["unshare", "--map-root-user", "--mount"]

SCRIPT = """
disk=$1 copies=$2; shift 2
mount -t tmpfs -o size={size}k none "$disk"
"$@"
echo $?
cp -r "$disk" "$copies/full"
mount -o remount,size=1m none "$disk"
"$@"
echo $?
cp -r "$disk" "$copies/again"
"""
"""What is mounted here, no other process sees, and it ends with this one."""


@pytest.mark.parametrize(("size", "workers"), [(24, 2), (36, 1)])
def test_a_full_disk(size: int, workers: int, bundle: Bundle, tmp_path: Path) -> None:
    """size: of the disk in kB. The first has room for two shards of four, the second for all, and not for the index."""
    if subprocess.run([*MOUNTS, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    photos, disk = data_set(tmp_path / "photos", 8), tmp_path / "disk"
    disk.mkdir()
    vd.cache_latents(bundle, photos, tmp_path / "whole", size=(64, 64), shard=2).check()
    whole = content(tmp_path / "whole")
    command = [sys.executable, "-m", "vaedeploy", "cache", str(bundle.path), str(photos), "-o", str(disk / "latents")]
    command += ["--size", "64x64", "--shard", "2", "--workers", str(workers)]
    shell = [*MOUNTS, "sh", "-c", SCRIPT.format(size=size), "sh", str(disk), str(tmp_path), *command]
    ended = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["2", str(disk / "latents"), "0"], ended.stderr
    assert f"cannot write {disk}/latents/" in ended.stderr
    assert "No space left on device" in ended.stderr
    left = content(tmp_path / "full/latents")
    assert "cache.json" in left
    assert left.items() <= whole.items()
    assert content(tmp_path / "again/latents") == whole
