"""Photographs and shapes to verify on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vaedeploy.errors import ImageError
from vaedeploy.images.opacity import verification_mask, with_opacity
from vaedeploy.images.photos import GIVE, MOST, crop_batch, full_sizes, image_files, load_photos, shrink_middle
from vaedeploy.verify.shapes import verification_shapes


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16, 32, 64, 128])
def test_shapes_cover_what_differs(factor: int) -> None:
    shapes = verification_shapes(factor)
    latents = {s.name: (s.height // factor, s.width // factor) for s in shapes}
    assert all(s.height % factor == s.width % factor == 0 for s in shapes)
    assert len({(s.height, s.width) for s in shapes}) == len(latents) == len(shapes)
    assert latents["smallest"] == min(latents.values())
    assert latents["landscape"][0] < latents["landscape"][1]
    assert latents["portrait"][0] > latents["portrait"][1]
    assert [side % 2 for side in latents["odd"]] == [1, 1]
    assert latents["odd"][0] != latents["odd"][1]
    assert {s.batch for s in shapes} == {1, 2, 3}
    assert [s.name for s in shapes if not s.round_trip] == ["large"]
    assert shapes[-1].height == shapes[-1].width == min(512, 128 * factor)
    assert sum(s.batch * s.height * s.width for s in shapes) < 600_000  # in pixels; that of 512x512 has 262,144


@pytest.mark.parametrize(
    ("height", "width", "shape"),
    [
        (512, 512, (256, 256)),
        (300, 900, (256, 256)),
        (257, 256, (256, 256)),
        (100, 512, (96, 256)),
        (7, 512, (0, 256)),
    ],
)
def test_what_is_at_a_border_is_shrunk_and_not_cut_off(height: int, width: int, shape: tuple[int, int]) -> None:
    photo = np.full((height, width, 3), 200, np.uint8)
    photo[: height // 8] = 0  # a dark eighth at the top
    shrunk = shrink_middle(photo, 8, 256)
    assert shrunk.shape == (*shape, 3)
    if min(height, width) >= 256:
        assert (shrunk[:28] < 20).all()
        assert (shrunk[36:] > 180).all()


def test_shapes_at_the_factor_of_the_first_bundles() -> None:
    """Golden cases in bundles have these sizes."""
    assert [(s.name, s.batch, s.height, s.width) for s in verification_shapes(8)] == [
        ("smallest", 1, 64, 64),
        ("square", 1, 96, 96),
        ("landscape", 2, 64, 96),
        ("portrait", 1, 96, 64),
        ("odd", 3, 72, 88),
        ("large", 1, 512, 512),
    ]


@given(st.integers(1, 3), st.integers(1, 90), st.integers(1, 90), st.integers(1, 60), st.integers(1, 60))
def test_crops_have_the_shape_asked_for(batch: int, height: int, width: int, tall: int, wide: int) -> None:
    photos = [np.full((tall, wide, 3), 7, np.uint8), np.full((wide, tall, 3), 9, np.uint8)]
    crop = crop_batch(photos, batch, height, width)
    assert crop.shape == (batch, height, width, 3)
    assert crop.dtype == np.uint8
    assert [int(c.mean()) for c in crop] == [7, 9, 7][:batch]
    assert full_sizes(photos, batch) == ((tall, wide), (wide, tall), (tall, wide))[:batch]
    assert full_sizes(photos, 1, first=3) == ((wide, tall),)


def test_photos_get_opacity_where_they_have_none_of_their_own() -> None:
    own = np.full((40, 40, 4), 100, np.uint8)
    bare = np.full((40, 40, 3), 50, np.uint8)
    batch = crop_batch([bare, own], 2, 16, 24, channels=4)
    assert batch.shape == (2, 16, 24, 4)
    np.testing.assert_array_equal(batch[0], with_opacity(bare[:16, :24], verification_mask(16, 24)))
    np.testing.assert_array_equal(batch[1], own[:16, :24])
    assert crop_batch([own], 1, 80, 60, channels=4).shape == (1, 80, 60, 4)


def test_photos_of_a_folder_keep_real_opacity_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGBA", (9, 8), (1, 2, 3, 255)).save(tmp_path / "a.png")
    Image.new("RGBA", (9, 8), (1, 2, 3, 254)).save(tmp_path / "b.png")
    Image.new("RGB", (9, 8), (1, 2, 3)).save(tmp_path / "c.png")
    assert [p.shape for p in load_photos(tmp_path, 4)] == [(8, 9, 3), (8, 9, 4), (8, 9, 3)]
    assert [p.shape for p in load_photos(tmp_path)] == [(8, 9, 3)] * 2
    (told,) = caplog.messages
    assert told.startswith(f"left out: {tmp_path / 'b.png'} has transparent pixels")


def test_photos_that_cannot_be_read_are_told_and_others_take_their_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(MOST + 1):
        Image.new("RGB", (9, 8), (number, 2, 3)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "00.png").write_bytes(b"no picture")
    assert [int(photo[0, 0, 0]) for photo in load_photos(tmp_path)] == list(range(1, MOST + 1))
    (told,) = caplog.messages
    assert told.startswith(f"left out: {tmp_path / '00.png'} is not an image")
    for path in tmp_path.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ImageError) as error:
        load_photos(tmp_path)
    assert str(error.value).startswith(f"none of 10 pictures can be used:\n  {tmp_path / '00.png'} is not an image")
    assert len(str(error.value).splitlines()) == 11


def test_large_photos_are_cut_and_not_scaled() -> None:
    photo = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    np.testing.assert_array_equal(crop_batch([photo], 1, 4, 6)[0], photo[3:7, 3:9])


def test_samples_are_photographs() -> None:
    photos = load_photos()
    assert [p.shape for p in photos] == [(512, 512, 3), (400, 600, 3), (300, 451, 3)]
    assert all(p.dtype == np.uint8 and p.std() > 30 for p in photos)


def test_a_folder_of_photos(tmp_path: Path) -> None:
    for name, level in (("b.png", 2), ("a.jpg", 1), ("c.txt", 0)):
        if name.endswith("txt"):
            (tmp_path / name).write_text("not a picture")
        else:
            Image.new("RGB", (9, 8), (level, level, level)).save(tmp_path / name)
    assert [(p.shape, int(p.mean())) for p in load_photos(tmp_path)] == [((8, 9, 3), 1), ((8, 9, 3), 2)]


def test_one_photo(tmp_path: Path) -> None:
    Image.new("RGB", (9, 8), (3, 3, 3)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 8), (4, 4, 4)).save(tmp_path / "b.png")
    assert [int(photo.mean()) for photo in load_photos(tmp_path / "b.png")] == [4]


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        load_photos(tmp_path)
    assert str(error.value) == f"there is no picture in {tmp_path}. {GIVE}"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.png").touch()
    none, file = tmp_path / "none", tmp_path / "file.png"
    for place, message in (
        (none, f"there is no file or folder {none}. {GIVE}"),
        (file, f"{file} is empty (0 bytes)"),
    ):
        with pytest.raises(ImageError) as error:
            load_photos(place)
        assert str(error.value) == message


@pytest.mark.parametrize(("given", "near"), [("potrait.png", "portrait.png"), ("photo", "photos"), ("notes", None)])
def test_of_a_missing_picture_the_nearest_is_told(tmp_path: Path, given: str, near: str | None) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("portrait.png", "notes.txt"):
        (tmp_path / name).touch()
    hint = f"; the nearest is {tmp_path / near}" if near else ""
    with pytest.raises(ImageError) as error:
        image_files(tmp_path / given)
    assert str(error.value) == f"there is no file or folder {tmp_path / given}{hint}. {GIVE}"
    with pytest.raises(ImageError) as error:
        image_files([tmp_path / given])
    assert str(error.value) == f"there is no picture {tmp_path / given}{hint}"
