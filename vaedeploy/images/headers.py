"""The size of an image, read from its file without decoding it."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import IO

from PIL import ExifTags, Image, UnidentifiedImageError

from vaedeploy.images.files import opened, readable_formats

TURNED = (5, 6, 7, 8)
"""EXIF orientations of images that are stored on their side."""

TEXTS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""Chunks of a PNG file that can have an orientation. Pillow reads those behind the pixels only after the pixels."""


def is_image(file: IO[bytes]) -> bool:
    """Whether a file is of a format that is read, by its first bytes."""
    try:
        with Image.open(file, formats=readable_formats()):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # a decoder that recognised it, and failed
        return True


def image_size(file: IO[bytes], name: Path | str) -> tuple[int, int]:
    """The (H, W) of an image that ``read_image`` gives, upright. name: for messages.

    Raises ImageError for what is not an image, and for one that is too large; a truncated one still has a size.
    """
    late = _has_late_texts(file)
    with opened(file, name) as image:
        if late or image.format == "TIFF":  # some versions of Pillow turn it when they decode it
            image.load()
        # Not image.getexif(): for a PNG without EXIF data, it decodes the whole image to look behind the pixels.
        turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in TURNED
        return (image.width, image.height) if turned else (image.height, image.width)


def _has_late_texts(file: IO[bytes]) -> bool:
    """Whether a PNG file has one of ``TEXTS`` behind its pixels. False for other files, and for truncated ones."""
    file.seek(0)
    try:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return False
        pixels = False
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            pixels = pixels or kind == b"IDAT"
            if pixels and kind in TEXTS:
                return True
            file.seek(length + 4, io.SEEK_CUR)
        return False
    finally:
        file.seek(0)
