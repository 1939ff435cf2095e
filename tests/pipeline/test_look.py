"""One VAE on one's own pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image
from tiny_bundle import tiny_bundle

from vaedeploy.errors import ImageError, InputError
from vaedeploy.images.cut import Cut
from vaedeploy.images.files import read_image, write_image
from vaedeploy.images.opacity import flattened, verification_mask, with_opacity
from vaedeploy.pipeline.compare import Reconstruction
from vaedeploy.pipeline.look import Looked, look_at_bundle, look_document
from vaedeploy.quality import measure_quality
from vaedeploy.quality.candidates import Candidate, Picture
from vaedeploy.runtime import VAE


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
    line = (
        "Only the middle of 2 of 2 pictures is looked at (height x width): "
        "face, 96x128 of 98x131 pixels, 95.7%; coffee, 96x128 of 98x131 pixels, 95.7%."
    )
    assert told == f"pictures are cut to sizes that the VAE takes, of at most 1024 pixels a side. {line}"
    assert text.index(line) < text.index("</header>")
    part = "Only its middle is looked at (height x width): 96x128 of 98x131 pixels, 95.7%."
    first, second = text.split(">coffee</h3>")
    assert (first.count(part), second.count(part)) == (1, 1)
    assert found.cuts == (Cut("face", 96, 128, 98, 131), Cut("coffee", 96, 128, 98, 131))
    assert text.count('class="stage"') == 2


def test_pictures_of_one_name_are_all_looked_at(folder: Path, tmp_path: Path) -> None:
    """The last of them took the place of the others, without a word."""
    places = ("a/cat.png", "a/cat.jpg", "b/cat.png", "c/b/cat.png", "dog.png")
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.open(folder / "face.png").save(tmp_path / place)
    found = look_at_bundle(folder / "one", [tmp_path / place for place in places], page=tmp_path / "page")
    titles = [row.picture for row in found.reconstructions]
    assert titles == ["a/cat.png", "cat.jpg", f"{tmp_path.name}/b/cat.png", "c/b/cat.png", "dog"]
    text = (tmp_path / "page" / "index.html").read_text()
    assert all(f">{title}</h3>" in text for title in titles)


def test_the_command_says_what_is_seen(vaedeploy: Callable[..., Any], folder: Path) -> None:
    ended = vaedeploy("look", folder / "one", folder / "face.png", "-o", folder / "told")
    assert ended.code == 0
    assert "face" in ended.out
    ended = vaedeploy("look", folder / "one", folder / "face.png", "-o", folder / "told", "--json")
    told = json.loads(ended.out)
    assert told["bundle"] == "one"
    assert [row["picture"] for row in told["reconstructions"]] == ["face"]
    assert told["cuts"] == [{"picture": "face", "height": 96, "width": 128, "full_height": 98, "full_width": 131}]


def test_a_picture_that_is_looked_at_as_a_whole_has_no_cut(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(skimage.data.astronaut()[:96, :128]).save(folder / "fits.png")
    found = look_at_bundle(folder / "one", folder / "fits.png", page=folder / "fitting")
    assert (found.cuts, caplog.messages) == ((), [])
    assert "Only " not in (folder / "fitting" / "index.html").read_text()


def test_the_warning_names_each_of_many_pictures(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"no{number}" for number in range(5)]
    (folder / "many").mkdir()
    for name in names:
        Image.fromarray(skimage.data.astronaut()[:34, :35]).save(folder / "many" / f"{name}.png")
    look_at_bundle(folder / "one", folder / "many", page=folder / "shown")
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.endswith(
        "Only the middle of 5 of 5 pictures is looked at: 86.1% to 86.1% of the pixels of each. "
        "They are no0, no1, no2, no3, no4."
    )


def test_one_transparent_picture_ends_nothing_and_is_shown_on_a_background(
    vaedeploy: Callable[..., Any], folder: Path
) -> None:
    logo = folder / "logo.png"
    pixels = skimage.data.astronaut()[:64, :96]
    write_image(logo, with_opacity(pixels, verification_mask(64, 96)))
    looking = ("look", folder / "one", logo, folder / "face.png", "-o", folder / "logo", "--json")
    ended = vaedeploy(*looking)
    assert ended.code == 2
    told = json.loads(ended.out)
    assert [row["picture"] for row in told["reconstructions"]] == ["face"]
    (sentence,) = told["failures"]
    assert sentence == (
        f"{logo} has transparent pixels, whose colour depends on what is behind. Set it with --background, such as "
        "--background white, or flatten the picture first"
    )
    assert f"Error: 1 of 2 pictures failed; the result is of the others:\n  {sentence}\n" in ended.err
    text = (folder / "logo" / "index.html").read_text()
    assert text.index(f"1 of 2 pictures is not shown: {sentence}.") < text.index("</header>")
    ended = vaedeploy(*looking, "--background", "#0000ff")
    assert ended.code == 0
    told = json.loads(ended.out)
    assert [row["picture"] for row in told["reconstructions"]] == ["logo", "face"]
    assert "failures" not in told
    with VAE(folder / "one") as vae:
        seen = flattened(read_image(logo, opacity=True), (0, 0, 255), logo)
        expected = measure_quality(seen, vae.decode(vae.encode(seen), output="float")[0], factor=4)
    assert told["reconstructions"][0]["quality"]["error"]["psnr"] == expected.error.psnr


def test_a_vae_of_images_with_opacity_has_no_use_for_a_background(folder: Path, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "rgba", image_channels=4)
    with pytest.raises(
        InputError, match=r"^background is for VAEs of RGB images, and images have opacity here; leave it out$"
    ):
        look_at_bundle(tmp_path / "rgba", [folder / "face.png"], page=tmp_path / "page", background=(0, 0, 0))


def test_without_an_image_the_command_says_what_it_took_for_the_bundle(
    vaedeploy: Callable[..., Any], folder: Path
) -> None:
    for first, told in (
        ("one", f"the first argument is the bundle, and that is {folder / 'one'}."),
        ("face.png", f"{folder / 'face.png'} is a picture, and stands where a bundle is wanted"),
    ):
        ended = vaedeploy("look", folder / first, "-o", folder / "told")
        assert ended.code == 2
        assert told in " ".join(ended.err.split())


def test_a_second_bundle_leads_to_compare(vaedeploy: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    two = tiny_bundle(tmp_path / "two").path
    ended = vaedeploy("look", folder / "one", two, folder / "face.png", "-o", tmp_path / "page")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"Error: {two} is a bundle, and stands where a picture is wanted. look takes one bundle; to compare several: "
        f"vaedeploy compare {folder / 'one'} {two} --images DIR\n"
    )


def test_a_vae_that_changes_nothing_is_good() -> None:
    photo = skimage.data.astronaut()[:64, :64]
    quality = measure_quality(photo, photo)
    same = Picture("face", photo, (Candidate("one", photo, quality, ()),))
    made = look_document(Looked("one", (Reconstruction("one", "face", quality, ()),), ("Not measured.",)), [same])
    assert (made.tone, made.verdict) == ("good", "one changes no picture visibly")
    (line,) = made.further
    assert line.startswith("one keeps 100% of the fine detail; colours are 0.0 CIEDE2000 off")
    assert line.endswith("No fault is visible.")
    assert made.notes == ("Not measured.",)


def test_a_verdict_on_a_part_says_so_in_its_sentence() -> None:
    photo = skimage.data.astronaut()[:64, :64]
    quality = measure_quality(photo, photo)
    cut = Cut("face", 64, 64, 640, 650)
    part = Picture("face", photo, (Candidate("one", photo, quality, ()),), cut)
    row = Reconstruction("one", "face", quality, ())
    made = look_document(Looked("one", (row,), cuts=(cut,)), [part])
    assert made.verdict == "one changes nothing visibly in what was looked at"
    assert made.sentences == ("Only the middle of face is looked at (height x width): 64x64 of 640x650 pixels, 1.0%.",)


def test_what_cannot_be_looked_at_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^no image was given"):
        look_at_bundle(folder / "one", [], page=folder / "none")
    with pytest.raises(ImageError, match=r"^there is no picture .*missing\.png$"):
        look_at_bundle(folder / "one", [folder / "missing.png"], page=folder / "none")
    with pytest.raises(ImageError, match=r"^https://example\.com/a\.png is an address"):
        look_at_bundle(folder / "one", [Path("https://example.com/a.png")], page=folder / "none")
    spaced = shutil.copy(folder / "face.png", tmp_path / "my face.png")
    with pytest.raises(ImageError, match=r"my; put a name with spaces in it into quotes$"):
        look_at_bundle(folder / "one", [spaced.parent / "my", spaced.parent / "face.png"], page=folder / "none")
    with pytest.raises(InputError, match="was given twice"):
        look_at_bundle(folder / "one", [folder / "face.png", folder / "face.png"], page=folder / "none")
    assert not (folder / "none").exists()
