"""Images as a page embeds them: data URIs, heat maps of the error, and the area where the error is largest."""

from __future__ import annotations

import base64
import io

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter

from vaedeploy.images.opacity import as_seen, on_checkerboard
from vaedeploy.quality.candidates import Pixels

LOSSY = {"format": "WEBP", "quality": 90, "method": 4}
"""Compression of images that are viewed as a whole: so weak that it adds no visible artifacts."""

CROP = 64
"""Side of the worst area in pixels."""

HEAT = (
    ("0", "#000004"),
    ("1", "#1f0c48"),
    ("2", "#550f6d"),
    ("4", "#88226a"),
    ("8", "#ba3655"),
    ("16", "#e35933"),
    ("32", "#f98c0a"),
    ("64", "#fcffa4"),
)
"""Steps of the heat map's scale: the smallest error of each step, in 8-bit levels, and its colour.

The colours are matplotlib's ``inferno``, whose lightness only grows, so that it can be read in greyscale and by
colour-blind people.
"""


class Area(msgspec.Struct, frozen=True):
    """A square of an image, in pixels. levels: its mean error, as ``error_levels`` measures it, in 8-bit levels."""

    top: int
    left: int
    side: int
    levels: float

    def of(self, pixels: Pixels) -> Pixels:
        """The pixels of the area in an image of the same size."""
        return pixels[self.top : self.top + self.side, self.left : self.left + self.side]


def error_levels(reference: Pixels, candidate: Pixels) -> NDArray[np.uint8]:
    """Error of each pixel, (H, W): the largest difference of its channels, in 8-bit levels, ``as_seen``."""
    worst: NDArray[np.int16] = np.abs(as_seen(candidate).astype(np.int16) - as_seen(reference)).max(axis=2)
    return worst.astype(np.uint8)


def worst_area(error: NDArray[np.uint8]) -> Area:
    """The square with the largest mean error."""
    side = min(CROP, *error.shape)
    # The origin puts the mean of each square at its top-left pixel.
    means = uniform_filter(error.astype(np.float32), side, origin=-(side // 2))
    inside = means[: error.shape[0] - side + 1, : error.shape[1] - side + 1]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return Area(int(top), int(left), side, float(error[top : top + side, left : left + side].mean()))


def heat_map(error: NDArray[np.uint8], side: int) -> str:
    """A data URI of the error in the colours of ``HEAT``, shrunk so that its longer side has at most ``side`` pixels.

    A pixel of the map shows the largest of the errors that it covers.
    """
    step = -(-max(error.shape) // side)
    height, width = (-(-length // step) for length in error.shape)
    padded = np.pad(error, [(0, n * step - length) for n, length in zip((height, width), error.shape, strict=True)])
    pooled = padded.reshape(height, step, width, step).max(axis=(1, 3))
    bounds = [int(level) for level, _ in HEAT]
    image = Image.fromarray((np.digitize(pooled, bounds) - 1).astype(np.uint8))
    image.putpalette(b"".join(bytes.fromhex(color[1:]) for _, color in HEAT))
    return _uri(image, format="PNG", optimize=True, bits=3)


def lossless(pixels: Pixels) -> str:
    """A data URI of the image as PNG, which changes no pixel. One with opacity is put in front of a checkerboard."""
    return _uri(Image.fromarray(np.ascontiguousarray(on_checkerboard(pixels))), format="PNG", optimize=True)


def at_most(pixels: Pixels, side: int) -> str:
    """A data URI of the image as WebP, shrunk if its longer side has more than ``side`` pixels. An image with opacity
    is put in front of a checkerboard: pictures lie on top of each other, and none may show what is under it.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _uri(Image.fromarray(on_checkerboard(np.asarray(image))), **LOSSY)


def _uri(image: Image.Image, **options: object) -> str:
    data = io.BytesIO()
    image.save(data, **options)  # type: ignore[arg-type]
    return f"data:image/{str(options['format']).lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
