"""Copies of bundles."""

from __future__ import annotations

from pathlib import Path

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.copy import copy_bundle


def test_a_bundle_whose_files_are_held_is_copied_as_often_as_wanted(bundle: Bundle, tmp_path: Path) -> None:
    held = Bundle.hold(bundle.path)
    for name in ("one", "other"):
        copy_bundle(held, tmp_path / name)
        assert Bundle.open(tmp_path / name).manifest == bundle.manifest
    held.release()
