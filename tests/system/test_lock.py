"""Locks between threads."""

from __future__ import annotations

from pathlib import Path

from vaedeploy.system.lock import lock


def test_lock_holds_between_threads_and_lapses(tmp_path: Path) -> None:
    with lock(tmp_path / "lock") as first, lock(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    assert list(tmp_path.iterdir()) == []
    with lock(tmp_path / "lock") as third:
        assert third
