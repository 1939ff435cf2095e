"""What is at a path, where pathlib raises."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from vaedeploy.system.missing import missing
from vaedeploy.system.places import exists, is_file, is_folder, resolved


def test_a_link_to_itself_a_long_name_and_a_null_character_are_nothing(tmp_path: Path) -> None:
    (loop := tmp_path / "loop").symlink_to(loop)
    (tmp_path / "gone").symlink_to("nowhere")
    long = tmp_path / ("x" * 300)
    for path in (loop, tmp_path / "gone", long, tmp_path / "a\0b"):
        assert not exists(path)
        assert not is_file(path)
        assert not is_folder(path)
    assert resolved(loop) == loop
    assert exists(tmp_path)
    assert is_folder(tmp_path)
    assert missing("file", loop) == f"{loop} cannot be read: Too many levels of symbolic links"
    assert missing("file", long) == f"{long} cannot be read: File name too long"
    assert missing("file", tmp_path / "gone") == f"{tmp_path / 'gone'} is a link to nowhere, where nothing is"


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_what_is_in_a_forbidden_folder_is_nothing() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (inside := Path(folder) / "a.png").touch()
        os.seteuid(65534)
        try:
            assert not exists(inside)
            assert missing("file", inside) == f"{inside} cannot be read: Permission denied"
        finally:
            os.seteuid(0)
        assert is_file(inside)
