"""Locks between threads and processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vaedeploy.system.lock import hold_file, lock

HOLDS = """
import sys
from pathlib import Path
from vaedeploy.system.lock import lock
with lock(Path(sys.argv[1])) as acquired:
    print(acquired, flush=True)
    sys.stdin.readline()
"""


def test_lock_holds_between_threads_and_lapses(tmp_path: Path) -> None:
    with lock(tmp_path / "lock") as first, lock(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    assert list(tmp_path.iterdir()) == []
    with lock(tmp_path / "lock") as third:
        assert third


def test_a_killed_process_leaves_a_file_and_no_lock(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDS, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with lock(file) as acquired:
            assert not acquired
        process.kill()
    assert file.exists()
    with lock(file) as acquired:
        assert acquired
    assert not file.exists()


def test_what_is_locked_keeps_its_bytes(tmp_path: Path) -> None:
    """A lock that is tried opens the file, and may neither empty nor remove it while another holds it."""
    file = tmp_path / "draft"
    with hold_file(file) as handle:
        assert handle is not None
        file.write_bytes(b"half")
        with lock(file) as acquired:
            assert not acquired
        assert file.read_bytes() == b"half"


def test_no_folder_is_made_for_a_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), lock(tmp_path / "missing" / "lock"):
        pass
    assert list(tmp_path.iterdir()) == []
