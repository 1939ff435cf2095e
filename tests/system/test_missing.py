"""What is said of a path that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaedeploy.system.missing import missing


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("potrait.png", "portrait.png"),
        ("holiday.jpg", "holiday.JPG"),
        ("dmeo", "demo"),
        ("DEMO", "demo"),
        ("landscape.png", None),
        ("hiden", None),
        ("none/portrait.png", None),
        ("nul\0/portrait.png", None),
        ("demo/portrait.png", None),  # demo is a file, which cannot be listed
    ],
)
def test_the_nearest_name_is_told(tmp_path: Path, given: str, near: str | None) -> None:
    for name in ("portrait.png", "holiday.JPG", "demo", ".hidden"):
        (tmp_path / name).touch()
    told = f"there is no file {tmp_path / given}"
    assert missing("file", tmp_path / given) == (f"{told}; the nearest is {tmp_path / near}" if near else told)


def test_a_name_in_the_current_folder_is_told_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert missing("bundle at", "demoo/") == "there is no bundle at demoo/; the nearest is demo"


def test_only_what_fits_is_told(tmp_path: Path) -> None:
    (tmp_path / "photo").touch()
    (tmp_path / "photos").mkdir()
    told = missing("folder", tmp_path / "photo_", Path.is_dir)
    assert told == f"there is no folder {tmp_path / 'photo_'}; the nearest is {tmp_path / 'photos'}"


@pytest.mark.parametrize("given", ["https://example.com/a.png", Path("https://example.com/a.png")])
def test_an_address_is_no_file(given: str | Path) -> None:
    assert missing("picture", given) == (
        "https://example.com/a.png is an address, and vaedeploy reads files; download it first"
    )
    assert missing("picture", "C:/a.png") == "there is no picture C:/a.png"
