"""The candidate's tone by place: whether some parts of the picture are lighter or darker than others should be.

A picture that was decoded in tiles has patches of other tone, since each tile is normalised by itself; between blended
tiles there is no step that ``artifacts.seams`` could find.

With the reference's colours r and the candidate's luma error e, the tone of a block of 64x64 pixels is

    t = mean(e - f(r)),    f(r) = a + b . r + c y^2 + d y^3 + g (R - y)^2 + h (B - y)^2,    y = luma of r,

where f is the one change of colours for the whole picture that explains most of e: a cast, or another contrast,
saturation or tone curve, is no patch. The middle of all blocks counts as 0.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from skimage.color import rgb2gray
from skimage.transform import downscale_local_mean
from skimage.util import view_as_windows

from vaedeploy.quality.planes import FORM, Planes

Array = NDArray[np.float64]

BLOCK = 64
"""Side of a block, in pixels: smaller than usual tiles, and large enough for grain to average out."""

CELL = FORM
"""Side, in pixels, of the means from which blocks are made. A cell that touches black or white is left out, since a
change of colours is cut off there.
"""

ENDS = (4.0, 251.0)
"""Levels between which a cell's means must lie to count."""

ROUNDS = 5
"""How many times the common change is fitted; each time, blocks that are far off it count for less."""


class Tone(msgspec.Struct, frozen=True):
    """Differences of tone between places, in 8-bit levels of luma; 0 where the picture is one block.

    worst: the largest distance of a place from the middle of all places. spread: the lightest place less the darkest.
    A place is the median of 3x3 blocks of 64x64 pixels: what is in one block alone is an object of the scene.
    """

    worst: float
    spread: float


def measure_tone(reference: Planes, candidate: Planes) -> Tone:
    before, after = (_cells(planes) for planes in (reference, candidate))
    inside = np.all([(ENDS[0] <= cells) & (cells <= ENDS[1]) for cells in (before, after)], axis=(0, 3))
    features: Array = _features(before / 255)
    error = rgb2gray(after) - rgb2gray(before)
    planes = np.concatenate([features, error[..., None]], axis=2)
    means, known = _block_means(planes, inside, step=BLOCK // CELL // 4)
    if not known.any():
        return Tone(0.0, 0.0)
    change = _fit(means[known])
    means, known = _block_means(planes, inside, step=BLOCK // CELL)
    tones = means[..., -1] - means[..., :-1] @ change
    middle = np.median(tones[known]) if known.any() else 0.0
    places = median_filter(np.where(known, tones - middle, 0), size=3, mode="nearest")
    return Tone(worst=float(np.abs(places).max()), spread=float(np.ptp(places)))


def _cells(planes: Planes) -> Array:
    """Means over 8x8 pixels, (h, w, 3), 0 to 255."""
    height, width = (side // CELL * CELL for side in planes.pixels.shape[:2])
    cells: Array = downscale_local_mean(planes.pixels[:height, :width].astype(np.float64), (CELL, CELL, 1))
    return cells


def _features(colors: Array) -> Array:
    """What a change of colours may depend on, (h, w, 8). colors: (h, w, 3), 0 to 1."""
    luma = rgb2gray(colors)
    red, _, blue = (colors[..., n] - luma for n in range(3))
    terms = [np.ones_like(luma), *np.moveaxis(colors, 2, 0), luma**2, luma**3, red**2, blue**2]
    return np.stack(terms, axis=2)


def _block_means(planes: Array, inside: NDArray[np.bool_], step: int) -> tuple[Array, NDArray[np.bool_]]:
    """Means of (h, w, n) over blocks every ``step`` cells, and which of them have a quarter of their cells or more.

    A picture with a side under 64 pixels has blocks of that side.
    """
    size = [min(BLOCK // CELL, side) for side in inside.shape]
    counted = np.concatenate([planes, np.ones((*inside.shape, 1))], axis=2) * inside[..., None]
    windows = view_as_windows(counted, (*size, counted.shape[2]), (step, step, 1))[:, :, 0]
    sums = windows.sum(axis=(2, 3))
    count = sums[..., -1:]
    return sums[..., :-1] / np.maximum(count, 1), count[..., 0] >= size[0] * size[1] / 4


def _fit(blocks: Array) -> Array:
    """The coefficients of the common change: least squares, in which a block that is far off counts for less (Huber).

    blocks: (number, features and error).
    """
    features, error = blocks[:, :-1], blocks[:, -1]
    weights: NDArray[np.floating[Any]] = np.ones(len(blocks))
    for _ in range(ROUNDS):
        root = np.sqrt(weights)
        change: Array = np.linalg.lstsq(features * root[:, None], error * root, rcond=1e-6)[0]
        distance: Array = np.abs(error - features @ change)
        usual = np.median(distance) + 0.1  # a tenth of a level, so that equal pictures do not divide by zero
        weights = np.minimum(1, usual / np.maximum(distance, usual))
    return change
