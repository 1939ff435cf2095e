"""What VAEs do to pictures when something is wrong, put into a photograph at a chosen strength.

Each takes (H, W, 3) uint8 and gives the same, or float where bytes cannot hold the fault. Strength 0 changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray

Picture = NDArray[np.uint8]

TILE = 128
"""Distance of the tile borders that ``seams`` makes, in pixels."""


def _levels(values: NDArray[np.floating]) -> Picture:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def wash_out(picture: Picture, strength: float) -> Picture:
    """Mix with mid grey; strength 1 is grey alone."""
    return _levels(picture + strength * (127.5 - picture.astype(np.float64)))


def saturate(picture: Picture, strength: float) -> Picture:
    """Draw colours away from their own grey by this share."""
    grey = 255 * rgb2gray(picture)[..., None]
    return _levels(grey + (1 + strength) * (picture - grey))


def cast(picture: Picture, levels: float, color: tuple[float, float, float] = (1, 1, 1)) -> Picture:
    """Add ``levels`` times ``color``: a veil, grey or coloured."""
    return _levels(picture + levels * np.array(color, np.float64))


def blur(picture: Picture, sigma: float) -> Picture:
    """Gaussian of ``sigma`` pixels."""
    return _levels(gaussian_filter(picture.astype(np.float64), (sigma, sigma, 0)))


def sharpen(picture: Picture, amount: float) -> Picture:
    """Unsharp mask of one pixel's radius."""
    exact = picture.astype(np.float64)
    return _levels(exact + amount * (exact - gaussian_filter(exact, (1, 1, 0))))


def grid(picture: Picture, levels: float, period: int = 8) -> Picture:
    """A pattern of thin lines, ``levels`` bright, every ``period`` pixels in both directions."""
    height, width, _ = picture.shape
    lines = (np.arange(height)[:, None] % period == 0) | (np.arange(width) % period == 0)
    return _levels(picture + levels * lines[..., None].astype(np.float64))


def posterize(picture: Picture, step: float) -> Picture:
    """Keep every ``step``-th level in smooth areas; 1 keeps all."""
    smoothed = gaussian_filter(picture.astype(np.float64), (2, 2, 0))
    slope = np.hypot(*np.gradient(smoothed, axis=(0, 1))).max(axis=2, keepdims=True)
    return np.where(slope < 3, _levels(np.floor(picture / step) * step + (step - 1) / 2), picture)


def seams(picture: Picture, levels: float, tile: int = TILE, seed: int = 0) -> Picture:
    """Each tile has a colour offset of its own: normal, with ``levels`` of standard deviation."""
    height, width, _ = picture.shape
    offsets = np.random.default_rng(seed).normal(0, levels, (-(-height // tile), -(-width // tile), 3))
    spread = offsets.repeat(tile, axis=0).repeat(tile, axis=1)[:height, :width]
    return _levels(picture + spread)


def patches(picture: Picture, levels: float) -> Picture:
    """Tiles of a chessboard of 128 pixels are lighter or darker by ``levels`` / 2, with soft borders and with noise, so
    that a part of a level counts.
    """
    rows, columns = np.indices(picture.shape[:2]) // TILE
    signs = gaussian_filter((rows + columns) % 2 - 0.5, 8)[..., None]
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, picture.shape)
    return _levels(picture + levels * signs + noise)


def fry(picture: Picture, per_million: float, seed: int = 0) -> Picture:
    """Single pixels, as many per million, go to black, white or a primary colour."""
    rng = np.random.default_rng(seed)
    height, width, _ = picture.shape
    places = rng.choice(height * width, round(per_million * height * width / 1e6), replace=False)
    fried = picture.reshape(-1, 3).copy()
    fried[places] = rng.choice(np.array([0, 255], np.uint8), (len(places), 3))
    return fried.reshape(picture.shape)


def to_float(picture: Picture) -> NDArray[np.float32]:
    """(3, H, W) in [-1, 1], as decoders give it."""
    return picture.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - 1


def add_nan(picture: Picture, share: float, value: float = np.nan, seed: int = 0) -> NDArray[np.float32]:
    """Some values of a decoder's output, a ``share`` of all, are NaN (or ``value``)."""
    image = to_float(picture)
    image[np.random.default_rng(seed).random(image.shape) < share] = value
    return image


def flatten(picture: Picture, level: int = 0) -> Picture:
    return np.full_like(picture, level)


def rounding_noise(picture: Picture, seed: int = 0) -> Picture:
    """Each value is a level up, a level down or the same: what lower precision does, and nobody sees."""
    return _levels(picture + np.random.default_rng(seed).integers(-1, 2, picture.shape).astype(np.float64))


@dataclass(frozen=True)
class Detector:
    """A fault, the word and the metric that tell it, and strengths to put it in at.

    strengths: rising. fires_from: one of them: from it on the word is told of every photograph. The last is strong: the
    word is the first that is told.
    """

    fault: str
    word: str
    metric: str
    inject: Callable[[Picture, float], Picture]
    unit: str
    strengths: tuple[float, ...]
    fires_from: float


def fade(picture: Picture, strength: float) -> Picture:
    return saturate(picture, -strength)


def harden(picture: Picture, strength: float) -> Picture:
    return wash_out(picture, -strength)


def darken(picture: Picture, levels: float) -> Picture:
    return cast(picture, -levels)


GREEN = partial(cast, color=(-0.5, 1, -0.5))
BLUE = partial(cast, color=(-0.5, -0.5, 1))

SHARE = "share"
CHROMA = "color.chroma_ratio"

DETECTORS = (
    Detector("mixed with grey", "washed out", CHROMA, wash_out, SHARE, (0.02, 0.05, 0.1, 0.2, 0.4), 0.1),
    Detector("colours faded", "washed out", CHROMA, fade, SHARE, (0.02, 0.05, 0.1, 0.2, 0.4), 0.2),
    Detector("colours raised", "over-saturated", CHROMA, saturate, SHARE, (0.02, 0.05, 0.1, 0.2, 0.4), 0.2),
    Detector("green added", "green cast", "color.cast", GREEN, "levels", (1, 2, 4, 8, 16), 4),
    Detector("blue added", "blue cast", "color.cast", BLUE, "levels", (1, 2, 4, 8, 16), 4),
    Detector("grey added", "grey cast", "contrast.mid_shift", cast, "levels", (2, 4, 8, 16, 24), 8),
    Detector("grey taken away", "too dark", "contrast.mid_shift", darken, "levels", (2, 4, 8, 16, 24), 8),
    Detector("Gaussian blur", "blurred", "detail.sharpness", blur, "pixels", (0.3, 0.4, 0.5, 0.7, 1, 2), 0.5),
    Detector("unsharp mask", "over-sharpened", "detail.sharpening", sharpen, SHARE, (0.1, 0.2, 0.4, 0.8, 1.6), 0.4),
    Detector("lines every 8 pixels", "grid", "artifacts.grid", grid, "levels", (1, 2, 4, 8), 2),
    Detector("levels left out", "banding", "artifacts.banding", posterize, "levels", (2, 4, 8, 16), 8),
    Detector("tiles offset", "seams", "artifacts.seams", seams, "levels", (0.5, 1, 2, 4, 8), 1),
    Detector("specks", "fried pixels", "artifacts.fried", fry, "per million", (2, 20, 50, 200, 1000), 20),
)  # fmt: skip
"""What is tested, and what benchmarks/fidelity.py measures the detection levels of."""


def synthetic_pictures() -> dict[str, Picture]:
    """Smooth gradients, and textures that are periodic by right."""
    rows, columns = np.mgrid[0:256, 0:384]
    ramps = {
        "ramp": columns * (255 / 383),
        "gentle ramp": 100 + columns / 16,
        "diagonal ramp": (rows + columns) / 4,
        "bowl": 255 - np.hypot(rows - 128, columns - 192),
    }
    boards = {f"chessboard of {n}": (rows // n + columns // n) % 2 * 180.0 + 30 for n in (4, 8, 16)}
    stripes = {f"stripes of {n}": 128 + 90 * np.sin(2 * np.pi * columns / n) for n in (8, 16)}
    return {name: _levels(np.stack([level] * 3, axis=2)) for name, level in (ramps | boards | stripes).items()}
