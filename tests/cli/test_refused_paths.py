"""Paths at which the system does not let anybody look, and those in a bundle, at which nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vaedeploy.bundle import Bundle


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with a picture in it."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16)).save("a.png")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["loop", "x" * 300])
@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "{name}"),
        ("encode", "{bundle}", "{name}", "-o", "a.safetensors"),
        ("encode", "{bundle}", "a.png", "-o", "{name}.safetensors"),
        ("decode", "{bundle}", "{name}", "-o", "a.png"),
        ("cache", "{bundle}", "{name}", "--size", "16x16", "-o", "cache"),
        ("cache", "{bundle}", "a.png", "--size", "16x16", "-o", "{name}"),
        ("look", "{bundle}", "{name}", "-o", "page"),
        ("compare", "{bundle}", "{name}", "-o", "page"),
        ("verify", "{bundle}", "--photos", "{name}"),
        ("export", "{name}"),
        ("optimize", "{name}", "-o", "a.onnx"),
        ("triton", "{name}", "-o", "models"),
    ],
)
def test_links_to_themselves_and_names_that_are_too_long_are_told(
    name: str, arguments: tuple[str, ...], vaedeploy: Callable[..., Any], bundle: Path
) -> None:
    for link in ("loop", "loop.safetensors"):
        Path(link).symlink_to(link)
    ended = vaedeploy(*(argument.format(bundle=bundle, name=name) for argument in arguments))
    if ended.code:  # a file may be written over a link to itself
        assert "Error: " in ended.err
        assert ended.code == 2
    else:
        assert (arguments[0], name) == ("encode", "loop")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", "{bundle}", "a.png", "-o", "{bundle}/new.safetensors"),
        ("encode", "{bundle}", ".", "-o", "{bundle}/new"),
        ("decode", "{bundle}", "a.safetensors", "-o", "{bundle}/new.png"),
        ("cache", "{bundle}", "a.png", "--size", "16x16", "-o", "{bundle}/new/cache"),
        ("look", "{bundle}", "a.png", "-o", "{bundle}/new"),
        ("verify", "{bundle}", "--report", "{bundle}/report/page"),
        ("verify", "{bundle}", "--junit", "{bundle}/new.xml"),
        ("optimize", "{bundle}/decoder.onnx", "-o", "{bundle}/new.onnx"),
        ("triton", "{bundle}", "-o", "{bundle}/new"),
    ],
)
def test_nothing_is_written_into_a_bundle(
    arguments: tuple[str, ...], vaedeploy: Callable[..., Any], bundle: Path
) -> None:
    Path("a.safetensors").touch()
    ended = vaedeploy(*(argument.format(bundle=bundle) for argument in arguments))
    told = f"Error: {bundle} is a bundle, and another file would damage it. Choose another folder"
    assert (ended.code, told in ended.err) == (2, True), ended.err
    Bundle.open(bundle).check()
