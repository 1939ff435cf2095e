"""Sizes of pictures by their headers: those of the decoded pictures."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vaedeploy.errors import ImageError
from vaedeploy.images import headers
from vaedeploy.images.files import image_from_bytes, image_suffixes, read_image
from vaedeploy.images.headers import image_size, is_image
from vaedeploy.system.installs import pip_install

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))


def saved(form: str, **options: object) -> bytes:
    data = io.BytesIO()
    PHOTO.save(data, form, **options)
    return data.getvalue()


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_size_is_that_of_the_upright_picture(form: str, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    data = saved(form, exif=exif)
    decoded = image_from_bytes(data, "a", most=1000)
    assert image_size(io.BytesIO(data), "a") == decoded.shape[:2]


def test_an_orientation_behind_the_pixels_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, chunk = saved("PNG"), exif.tobytes()[6:]
    late = struct.pack(">I", len(chunk)) + b"eXIf" + chunk + struct.pack(">I", zlib.crc32(b"eXIf" + chunk))
    data = plain[:-12] + late + plain[-12:]
    assert image_from_bytes(data, "a", most=1000).shape == (8, 6, 3)
    assert image_size(io.BytesIO(data), "a") == (8, 6)


def test_a_png_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", refuse)
    assert image_size(io.BytesIO(saved("PNG")), "a") == (6, 8)


def test_what_is_no_image() -> None:
    assert not is_image(io.BytesIO(b"a cat on a mat"))
    assert is_image(io.BytesIO(saved("PNG")[:-20]))
    with pytest.raises(ImageError, match="a is not an image"):
        image_size(io.BytesIO(b"a cat"), "a")


def test_too_large_by_its_header() -> None:
    header = struct.pack(">IIBBBBB", 2**20, 2**20, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    data += struct.pack(">I", zlib.crc32(b"IHDR" + header)) + struct.pack(">I", 0) + b"IDAT"
    with pytest.raises(ImageError, match="a is too large"):
        image_size(io.BytesIO(data), "a")


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a is HEIC, which Pillow reads with a plugin. Run: {} pillow-heif"),
        (b"\xff\x0a" + bytes(20), "a is JPEG XL, which Pillow reads with a plugin. Run: {} pillow-jxl-plugin"),
    ],
)
def test_what_a_plugin_would_read(head: bytes, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vaedeploy.images.plugins.plugin_formats", list)
    monkeypatch.setattr("vaedeploy.images.files.plugin_formats", list)
    with pytest.raises(ImageError) as refused:
        headers.image_size(io.BytesIO(head), "a")
    assert str(refused.value) == told.format(pip_install())


@pytest.mark.parametrize(
    ("form", "module", "suffix"), [("HEIF", "pillow_heif", ".heic"), ("JXL", "pillow_jxl", ".jxl")]
)
def test_what_a_plugin_reads(form: str, module: str, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip(module)
    assert suffix in image_suffixes()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.new("RGB", (80, 60), (200, 100, 50)).save(data, form, exif=exif.tobytes())
    (tmp_path / f"a{suffix}").write_bytes(data.getvalue())
    pixels = read_image(tmp_path / f"a{suffix}")
    assert pixels.shape == (80, 60, 3)
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 8  # both are lossy
    assert image_size(data, "a") == (80, 60)


@pytest.mark.parametrize(
    ("form", "module", "name"), [("HEIF", "pillow_heif", "HEIC"), ("JXL", "pillow_jxl", "JPEG XL")]
)
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_broken_file_of_a_plugin(form: str, module: str, name: str, share: float, tmp_path: Path) -> None:
    pytest.importorskip(module)
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(data, form)
    (tmp_path / "a").write_bytes(data.getvalue()[: int(len(data.getvalue()) * share)])
    with pytest.raises(ImageError) as refused:
        read_image(tmp_path / "a")
    assert str(refused.value) == f"{tmp_path / 'a'} is {name} and cannot be decoded, it is truncated or broken"
