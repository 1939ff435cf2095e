"""Pictures on disk, good and bad; real files, written by Pillow."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from vaedeploy.errors import ImageError, InputError, LatentError, OutputError
from vaedeploy.images import files
from vaedeploy.images.files import (
    KEEPS_OPACITY,
    WRITE_OPTIONS,
    check_image_name,
    files_in,
    image_suffixes,
    read_image,
    write_image,
)
from vaedeploy.images.latents import read_latent
from vaedeploy.images.plugins import format_names
from vaedeploy.system.atomic import write_file

FORMATS = ", ".join(("AVIF, BMP, GIF, JPEG, JPEG2000, MPO, PNG, PPM, TIFF, WEBP", *format_names()))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def icc_profile(space: bytes, **tags: bytes) -> bytes:
    """An ICC profile of version 2 for a display; D50 is its white."""
    described = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {"desc": described, "wtpt": _xyz(0.9642, 1.0, 0.8249), "cprt": b"text\0\0\0\0none\0", **tags}
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name.encode() + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"\0\0\0\0", 0x02100000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(0.9642, 1.0, 0.8249)[8:]
    return header + bytes(128 - len(header)) + table + body


def _xyz(*numbers: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(n * 65536) for n in numbers))


def _gamma(number: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(number * 256)) + b"\0\0"


def rgb_profile(gamma: float) -> bytes:
    """Display P3's primaries (adapted to D50) and a gamma."""
    primaries = {
        "rXYZ": (0.51512, 0.2412, -0.00105),
        "gXYZ": (0.29198, 0.69225, 0.04189),
        "bXYZ": (0.1571, 0.06657, 0.78407),
    }
    curves = {f"{c}TRC": _gamma(gamma) for c in "rgb"}
    return icc_profile(b"RGB ", **{name: _xyz(*value) for name, value in primaries.items()}, **curves)


def png(width: int, height: int, rows: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


# Pictures, read


@pytest.mark.parametrize("suffix", [s for s in WRITE_OPTIONS if s not in (".jpg", ".jpeg")])
def test_what_is_written_losslessly_is_read_again(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", photo)
    read = read_image(tmp_path / f"a{suffix}")
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    assert read.flags.writeable
    np.testing.assert_array_equal(read, photo)


def test_jpeg_keeps_colour_at_full_resolution(tmp_path: Path) -> None:
    # Stripes of one pixel in saturated colours: halved colour resolution would mix them to grey.
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 200
    write_image(tmp_path / "a.jpg", stripes)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - stripes).max() <= 16


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    read = read_image(saved(tmp_path / "a.png", Image.fromarray(grey)))
    np.testing.assert_array_equal(read, np.stack([grey] * 3, axis=-1))


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    bits = np.array([[True, False], [False, True]])
    read = read_image(saved(tmp_path / "a.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(read[..., 1], bits * 255)


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image = image.convert("P")
    image.putpalette([9, 8, 7, 200, 100, 50, 0, 0, 255])
    image.putdata([0, 1, 2])
    np.testing.assert_array_equal(
        read_image(saved(tmp_path / "a.png", image)), [[[9, 8, 7], [200, 100, 50], [0, 0, 255]]]
    )


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_grey_is_rounded_to_eight(tmp_path: Path, name: str) -> None:
    levels = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 8 1 65535\n" + levels.astype(">u2").tobytes())
    else:
        Image.fromarray(levels).save(tmp_path / name)
    read = read_image(tmp_path / name)
    np.testing.assert_array_equal(read[0, :, 0], np.round(levels[0] / 257))
    assert (read == read[..., :1]).all()


def test_sixteen_bit_colour_loses_its_lower_byte(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">6H", 0x12FF, 0x3400, 0x5678, 0xFFFF, 0x00FF, 0x0100)
    (tmp_path / "a.png").write_bytes(png(2, 1, row, depth=16))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[0x12, 0x34, 0x56], [0xFF, 0, 1]]])


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_without_profile_follows_the_plain_formula(tmp_path: Path, name: str) -> None:
    inks = (51, 102, 0, 51)
    read = read_image(saved(tmp_path / name, Image.new("CMYK", (16, 16), inks)))
    wanted = [255 * (1 - ink / 255) * (1 - inks[3] / 255) for ink in inks[:3]]
    assert np.abs(read - np.array(wanted)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_alpha_is_dropped(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (2, 1), (10, 255) if mode == "LA" else (10, 20, 30, 255))
    wanted = [10, 10, 10] if mode == "LA" else [10, 20, 30]
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", image)), [[wanted, wanted]])


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.new("RGBA", (2, 1), (1, 2, 3, 254)), {}),
        (Image.new("LA", (2, 1), (1, 0)), {}),
        (Image.new("P", (2, 1), 0), {"transparency": 0}),
        (Image.new("RGB", (2, 1), (1, 2, 3)), {"transparency": (1, 2, 3)}),
        (Image.fromarray(np.full((1, 2), 999, np.uint16)), {"transparency": 999}),
    ],
    ids=["RGBA", "LA", "palette", "RGB with a transparent colour", "16-bit with a transparent level"],
)
def test_transparent_pixels_are_refused(tmp_path: Path, image: Image.Image, options: dict[str, object]) -> None:
    path = saved(tmp_path / "a.png", image, **options)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value) == (
        f"{path} has transparent pixels, whose colour depends on what is behind. Flatten it onto a background first"
    )


def test_sixteen_bit_grey_without_transparent_pixels_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(np.full((1, 2), 257 * 7, np.uint16)), transparency=5)
    np.testing.assert_array_equal(read_image(path), np.full((1, 2, 3), 7))


# Opacity


@pytest.fixture
def see_through() -> np.ndarray:
    """Every opacity from 0 to 255, and colours under all of them."""
    colours = np.random.default_rng(2).integers(0, 256, (16, 16, 3), np.uint8)
    return np.concatenate([colours, np.arange(256, dtype=np.uint8).reshape(16, 16, 1)], axis=2)


@pytest.mark.parametrize("suffix", KEEPS_OPACITY)
def test_opacity_is_written_and_read_again_with_the_colours_under_it(
    tmp_path: Path, see_through: np.ndarray, suffix: str
) -> None:
    write_image(tmp_path / f"a{suffix}", see_through)
    read = read_image(tmp_path / f"a{suffix}", opacity=True)
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, see_through)


@pytest.mark.parametrize(("name", "form"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.bmp", "BMP")])
def test_opacity_is_not_written_where_there_is_no_room_for_it(
    tmp_path: Path, see_through: np.ndarray, name: str, form: str
) -> None:
    told = (
        f"cannot write a picture with opacity to {tmp_path / name}: {form} files hold none. Give a name that ends in "
        "one of .png, .webp, .tif, .tiff"
    )
    for write in (lambda path: write_image(path, see_through), lambda path: check_image_name(path, 4)):
        with pytest.raises(OutputError) as caught:
            write(tmp_path / name)
        assert str(caught.value) == told
    check_image_name(tmp_path / name, 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("image", "options", "wanted"),
    [
        (Image.new("RGBA", (2, 1), (1, 2, 3, 254)), {}, [1, 2, 3, 254]),
        (Image.new("LA", (2, 1), (7, 0)), {}, [7, 7, 7, 0]),
        (Image.new("RGBA", (2, 1), (1, 2, 3, 255)), {}, [1, 2, 3, 255]),
        (Image.new("RGB", (2, 1), (1, 2, 3)), {"transparency": (1, 2, 3)}, [1, 2, 3, 0]),
        (Image.fromarray(np.full((1, 2), 999, np.uint16)), {"transparency": 999}, [4, 4, 4, 0]),
        (Image.fromarray(np.full((1, 2), 999, np.uint16)), {"transparency": 5}, [4, 4, 4, 255]),
        (Image.new("RGB", (2, 1), (1, 2, 3)), {}, [1, 2, 3]),
        (Image.new("L", (2, 1), 9), {}, [9, 9, 9]),
    ],
    ids=["RGBA", "LA", "opaque RGBA", "RGB with a transparent colour", "16-bit with a transparent level",
         "16-bit with another level", "RGB", "grey"],
)  # fmt: skip
def test_opacity_is_read_where_a_file_has_it(
    tmp_path: Path, image: Image.Image, options: dict[str, object], wanted: list[int]
) -> None:
    read = read_image(saved(tmp_path / "a.png", image, **options), opacity=True)
    np.testing.assert_array_equal(read, [[wanted, wanted]])


def test_opacity_of_a_palette_is_read(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([9, 8, 7, 200, 100, 50, 0, 0, 255])
    image.putdata([0, 1, 2])
    path = saved(tmp_path / "a.png", image, transparency=bytes([0, 128]))
    np.testing.assert_array_equal(
        read_image(path, opacity=True), [[[9, 8, 7, 0], [200, 100, 50, 128], [0, 0, 255, 255]]]
    )


def test_sixteen_bit_opacity_loses_its_lower_byte(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">4H", 0x12FF, 0x3400, 0x5678, 0x80FF)
    (tmp_path / "a.png").write_bytes(png(1, 1, row, depth=16, colour=6))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", opacity=True), [[[0x12, 0x34, 0x56, 0x80]]])


def test_opacity_is_turned_with_the_picture_and_is_no_colour_to_a_profile(
    tmp_path: Path, see_through: np.ndarray
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif, "icc_profile": rgb_profile(1.8)}
    read = read_image(saved(tmp_path / "a.png", Image.fromarray(see_through), **options), opacity=True)
    plain = read_image(saved(tmp_path / "b.png", Image.fromarray(see_through[..., :3]), **options))
    np.testing.assert_array_equal(read[..., :3], plain)
    np.testing.assert_array_equal(read[..., 3], np.rot90(see_through[..., 3], -1))


@pytest.mark.parametrize("orientation", range(10))
def test_exif_rotation_is_applied(tmp_path: Path, photo: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", Image.fromarray(photo), exif=exif)
    with Image.open(path) as image:
        wanted = np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(path), wanted)


def test_rotation_and_profile_go_together(tmp_path: Path, photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = read_image(saved(tmp_path / "a.png", Image.fromarray(photo), icc_profile=rgb_profile(1.8)))
    turned = read_image(saved(tmp_path / "b.png", Image.fromarray(photo), icc_profile=rgb_profile(1.8), exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(upright, -1))


# Colour profiles


def test_srgb_profile_leaves_the_pixels_as_they_are(tmp_path: Path) -> None:
    cube = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", Image.fromarray(cube), icc_profile=SRGB)), cube)


def test_wide_gamut_is_converted(tmp_path: Path) -> None:
    """Against the equation: linearise, multiply by both spaces' matrices, encode as sRGB."""
    colours = np.array([[[128, 128, 128], [150, 100, 80], [90, 140, 110], [0, 0, 0], [255, 255, 255]]], np.uint8)
    read = read_image(saved(tmp_path / "a.png", Image.fromarray(colours), icc_profile=rgb_profile(1.8)))
    p3 = np.array([[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
    srgb = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]])
    linear = (colours / 255) ** 1.8 @ (np.linalg.inv(srgb) @ p3).T
    wanted = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055) * 255
    assert np.abs(read - wanted).max() <= 1.5
    assert np.abs(read.astype(int) - colours).max() >= 10


def test_grey_profile_is_converted(tmp_path: Path) -> None:
    grey = np.array([[0, 64, 128, 192, 255]], np.uint8)
    profile = icc_profile(b"GRAY", kTRC=_gamma(1.0))
    read = read_image(saved(tmp_path / "a.png", Image.fromarray(grey), icc_profile=profile))
    linear = grey / 255
    wanted = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(read - wanted[..., None]).max() <= 1.5


@pytest.mark.parametrize(
    ("profile", "why"),
    [(b"not a profile", "cannot open profile from string"), (LAB, "cannot build transform")],
    ids=["none", "lab"],  # a profile has the time in it, and each process of the tests would name another test
)
def test_profile_that_cannot_be_used_is_refused(tmp_path: Path, profile: bytes, why: str) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (2, 2)), icc_profile=profile)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value) == (
        f"{path} has a colour profile that cannot be used on it: {why}. Save it again in sRGB, or without profile"
    )


# Pictures that are none


def _half(form: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(data, form)
    return data.getvalue()[: len(data.getvalue()) // 2]


def _eps() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "EPS")
    return data.getvalue()


NO_PICTURE = f"is not an image, or has no pixels; formats that can be read: {FORMATS}"
TOO_LARGE = "are read. Crop it or make it smaller first"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty (0 bytes)"),
        (b"GIF90b of old", NO_PICTURE),
        (b"\x89PNG\r\n\x1a\n\0\0", NO_PICTURE),
        (png(0, 5), NO_PICTURE),
        (b"P6 0 5 255\n", NO_PICTURE),
        (_eps(), NO_PICTURE),
        (_half("JPEG"), "cannot be decoded, it is truncated or broken: image file is truncated"),
        (_half("PNG"), "cannot be decoded, it is truncated or broken: image file is truncated"),
        (_half("WEBP"), "cannot be decoded, it is truncated or broken: "),
        (
            png(30000, 30000),
            f"is too large: it has 900,000,000 pixels, and at most 134,217,728 {TOO_LARGE}",
        ),
        (
            png(10000, 10000),
            f"is too large: it has 100,000,000 pixels, and at most 89,478,485 {TOO_LARGE}",
        ),
    ],
    # Their bytes would be their names otherwise.
    ids=[str(number) for number in range(11)],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "a.png")
    assert str(caught.value).startswith(f"{tmp_path / 'a.png'} {message}")


@pytest.mark.parametrize(("mode", "colour"), [("I", 70000), ("F", 0.5), ("LAB", (5, 5, 5))])
def test_modes_without_a_plain_meaning_are_refused(tmp_path: Path, mode: str, colour: object) -> None:
    path = saved(tmp_path / "a.tif", Image.new(mode, (2, 2), colour))
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value) == f"{path} is a picture of Pillow's mode {mode}, which is not read. Save it as 8-bit RGB"


def test_a_file_that_begins_with_a_preview_is_refused(tmp_path: Path) -> None:
    """As most raw files of cameras do: they are TIFF files whose picture Pillow does not find."""
    path = tmp_path / "camera.dng"
    Image.new("RGB", (16, 12)).save(path, "TIFF", tiffinfo={ExifTags.Base.NewSubfileType: 1})
    with pytest.raises(
        ImageError, match=r"camera\.dng begins with a small preview of its picture, as the raw files of"
    ):
        read_image(path)
    Image.new("RGB", (16, 12)).save(path, "TIFF", tiffinfo={ExifTags.Base.NewSubfileType: 2})  # one page of several
    assert read_image(path).shape == (12, 16, 3)


def test_missing_picture_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "none.png")
    assert str(caught.value) == f"there is no file {tmp_path / 'none.png'}"
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path)
    assert str(caught.value) == f"{tmp_path} cannot be read: Is a directory"


# Pictures, written


@pytest.mark.parametrize("name", ["a", "a.xyz", "a.safetensors"])
def test_unknown_suffix_is_refused(tmp_path: Path, photo: np.ndarray, name: str) -> None:
    with pytest.raises(OutputError) as caught:
        write_image(tmp_path / name, photo)
    assert str(caught.value) == (
        f"cannot write a picture to {tmp_path / name}: give a name that ends in one of "
        ".png, .webp, .tif, .tiff, .bmp, .jpg, .jpeg"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32 of shape (4, 4, 3)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "uint8 of shape (1, 4, 4, 3)"),
        (np.zeros((3, 4, 5), np.uint8), "uint8 of shape (3, 4, 5)"),
        (np.zeros((0, 4, 3), np.uint8), "uint8 of shape (0, 4, 3)"),
    ],
)
def test_array_that_is_no_picture_is_not_written(tmp_path: Path, image: np.ndarray, told: str) -> None:
    with pytest.raises(ImageError) as caught:
        write_image(tmp_path / "a.png", image)
    assert str(caught.value) == f"image is {told}; a picture is (H, W, 3) or (H, W, 4) uint8"


def test_place_that_cannot_be_written_to(tmp_path: Path, photo: np.ndarray) -> None:
    (tmp_path / "file").write_text("x")
    cases = {
        tmp_path / "no" / "a.png": "No such file or directory. Make its folder first, or choose another place",
        tmp_path / "file" / "a.png": "Not a directory. Choose another place",
    }
    for path, why in cases.items():
        with pytest.raises(OutputError) as caught:
            write_image(path, photo)
        assert str(caught.value) == f"cannot write {path}: {why}"
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError) as caught:
        write_image(tmp_path / "folder.png", photo)
    assert str(caught.value) == (
        f"cannot write {tmp_path / 'folder.png'}: there is something that is not a file. Choose another place"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="a device of Unix")
def test_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(OutputError) as caught:
        write_file(Path("/dev/null"), b"x")
    assert str(caught.value) == ("cannot write /dev/null: there is something that is not a file. Choose another place")
    assert Path("/dev/null").is_char_device()


def test_picture_too_large_for_its_format_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"1x70000 \(height x width\) cannot be written as WEBP: .*Write it as \.png"):
        write_image(tmp_path / "a.webp", np.zeros((1, 70000, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_link_keeps_pointing_at_what_is_replaced(tmp_path: Path, photo: np.ndarray) -> None:
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    write_image(tmp_path / "link.png", photo)
    assert (tmp_path / "link.png").is_symlink()
    np.testing.assert_array_equal(read_image(tmp_path / "real.png"), photo)


def test_written_file_has_the_rights_that_the_umask_leaves(tmp_path: Path, photo: np.ndarray) -> None:
    old = os.umask(0o027)
    try:
        write_image(tmp_path / "a.png", photo)
    finally:
        os.umask(old)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


def test_limit_on_files_leaves_the_old_picture(tmp_path: Path, photo: np.ndarray) -> None:
    write_image(tmp_path / "a.png", photo)
    script = (
        "import sys, numpy as np\n"
        "from vaedeploy.images.files import write_image\n"
        "noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)\n"
        "write_image(sys.argv[1], noise)\n"
    )

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(
        [sys.executable, "-B", "-c", script, str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
        preexec_fn=small_files,
    )
    last = done.stderr.splitlines()[-1]
    assert last == (
        f"vaedeploy.errors.OutputError: cannot write {tmp_path / 'a.png'}: File too large. "
        "Raise the limit (ulimit -f, or the file system's own), or choose another place"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo)


@pytest.mark.parametrize("read", [read_image, read_latent])
def test_readers_refuse_by_the_common_tree(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(InputError):
        read(tmp_path / "none")


# Folders


def test_every_suffix_that_pillow_has_for_a_format_is_found(tmp_path: Path) -> None:
    """In one list, for ``encode``, ``--photos`` and ``compare``."""
    for suffix in (".jfif", ".jpe", ".pgm", ".mpo", ".apng", ".j2k", ".JPG", ".webp", ".tif"):
        (tmp_path / f"a{suffix}").touch()
    assert [place.name for place in files_in(tmp_path, image_suffixes())] == sorted(
        place.name for place in tmp_path.iterdir()
    )


def test_what_is_left_out_of_a_folder_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "b.txt", "c.TXT", "d.psd", "plain", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to("nowhere")
    assert files_in(tmp_path, image_suffixes()) == [tmp_path / "a.png"]
    assert caplog.messages == [
        f"left out of {tmp_path}: 1 .png device, pipe or broken link (gone.png), 1 .psd file (d.psd), "
        "2 .txt files (b.txt, ...), 1 file (plain), 1 folder (folder.png)"
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png is a device or a pipe, not a file; give an image file$"):
        read_image(tmp_path / "a.png")
    with pytest.raises(LatentError, match=r"a\.png is a device or a pipe, not a file; give a latent file$"):
        read_latent(tmp_path / "a.png")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(files, "MOST_PIXELS", 199)
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "a.png")
    assert str(caught.value) == (
        f"{tmp_path / 'a.png'} is too large: it has 200 pixels, and at most 199 are read. Crop it or make it smaller "
        "first"
    )
    monkeypatch.setattr(files, "MOST_PIXELS", 200)
    assert read_image(tmp_path / "a.png").shape == (10, 20, 3)
