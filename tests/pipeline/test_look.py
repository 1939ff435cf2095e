"""One VAE on one's own pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image
from tiny_bundle import tiny_bundle

from vaedeploy.errors import ImageError, InputError
from vaedeploy.pipeline.compare import Reconstruction
from vaedeploy.pipeline.look import Looked, look_at_bundle, look_document
from vaedeploy.quality import measure_quality
from vaedeploy.quality.candidates import Candidate, Picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("look")
    tiny_bundle(folder / "one")
    (folder / "photos").mkdir()
    Image.fromarray(skimage.data.coffee()[:98, :131]).save(folder / "photos" / "coffee.png")
    Image.fromarray(skimage.data.astronaut()[:98, :131]).save(folder / "face.png")
    return folder


def test_files_and_folders_stand_beside_what_the_vae_makes_of_them(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = look_at_bundle(folder / "one", [folder / "face.png", folder / "photos"], page=folder / "page")
    assert [(row.bundle, row.picture) for row in found.reconstructions] == [("one", "face"), ("one", "coffee")]
    text = (folder / "page" / "index.html").read_text()
    assert "one changes 2 of 2 pictures visibly: " in text
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == (
        "face.png, 98x131 (height x width), is cut to its middle 96x128, a size that the VAE takes, of at most 1024 "
        "pixels a side; 1 other picture too"
    )
    assert text.count('class="stage"') == 2


def test_the_command_says_what_is_seen(vaedeploy: Callable[..., Any], folder: Path) -> None:
    ended = vaedeploy("look", folder / "one", folder / "face.png", "-o", folder / "told")
    assert ended.code == 0
    assert "face" in ended.out
    ended = vaedeploy("look", folder / "one", folder / "face.png", "-o", folder / "told", "--json")
    told = json.loads(ended.out)
    assert told["bundle"] == "one"
    assert [row["picture"] for row in told["reconstructions"]] == ["face"]


def test_without_an_image_the_command_says_what_it_took_for_the_bundle(
    vaedeploy: Callable[..., Any], folder: Path
) -> None:
    ended = vaedeploy("look", folder / "face.png", "-o", folder / "told")
    assert ended.code == 2
    assert f"the first argument is the bundle, and that is {folder / 'face.png'}." in " ".join(ended.err.split())


def test_a_vae_that_changes_nothing_is_good() -> None:
    photo = skimage.data.astronaut()[:64, :64]
    quality = measure_quality(photo, photo)
    same = Picture("face", photo, (Candidate("one", photo, quality, ()),))
    made = look_document(Looked("one", (Reconstruction("one", "face", quality, ()),), ("Not measured.",)), [same])
    assert (made.tone, made.verdict) == ("good", "one changes no picture visibly")
    assert (made.further, made.notes) == ((), ("Not measured.",))


def test_what_cannot_be_looked_at_is_told(folder: Path) -> None:
    with pytest.raises(InputError, match=r"^no image was given"):
        look_at_bundle(folder / "one", [], page=folder / "none")
    with pytest.raises(ImageError, match=r"^there is no picture .*missing\.png"):
        look_at_bundle(folder / "one", [folder / "missing.png"], page=folder / "none")
    with pytest.raises(InputError, match="was given twice"):
        look_at_bundle(folder / "one", [folder / "face.png", folder / "face.png"], page=folder / "none")
    assert not (folder / "none").exists()
