"""What the candidate has that no photograph should have, and that the reference has not."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter, uniform_filter
from scipy.stats import trim_mean
from skimage.util import view_as_blocks

from vaedeploy.quality.planes import Planes

Pixels = NDArray[np.uint8]

Levels = NDArray[np.float32]

NEARBY = 8
"""Pixels to either side of a tile border with which it is compared."""

BLOCK = 32
"""Pixels of the side of a block in which levels are counted."""

TRIM = 0.02
"""Share of a block's pixels, at either end, that is left out: a few odd ones are no level."""

GENTLE = 2.0
"""Levels per pixel up to which a slope is smooth: steeper, a step of some levels is not seen."""

CALM = 3.0
"""Standard deviation in levels of grain up to which an area is smooth: more of it hides steps."""

OUTLYING = 40
"""Levels by which a fried pixel lies beyond all the pixels around it."""


class Artifacts(msgspec.Struct, frozen=True):
    """Each is 0 where there is nothing.

    grid: RMS, in 8-bit levels, of the pattern that repeats every ``factor`` pixels (its frequency and all harmonics),
    as far as it exceeds the reference's.
    seams: 8-bit levels by which the candidate's error jumps more at tile borders than elsewhere, in the mean over all
    borders; None where no tile size was given.
    banding: share (0 to 1) of the levels that smooth areas should run through and do not, above the reference's own.
    fried: isolated pixels that stand out from all around them and do not in the reference, per million pixels; a speck
    of three by three counts by its middle.
    nonfinite: share (0 to 1) of values that are NaN or infinite; 0 for bytes.
    constant: the candidate is one colour where the reference is not.
    """

    grid: float
    seams: float | None
    banding: float
    fried: float
    nonfinite: float
    constant: bool


def measure_artifacts(
    reference: Planes, candidate: Planes, *, factor: int, tile: int | None, nonfinite: float, sharpening: float
) -> Artifacts:
    """sharpening: the candidate's, as in ``Detail``."""
    before, after = reference.pixels.astype(np.float32), candidate.pixels.astype(np.float32)
    return Artifacts(
        grid=_grid(before, after - before, factor),
        seams=None if tile is None else _seams(before, after - before, factor, tile),
        banding=_banding(before, after),
        fried=_fried(reference.pixels, candidate.pixels, sharpening),
        nonfinite=nonfinite,
        constant=_is_constant(candidate.pixels) and not _is_constant(reference.pixels),
    )


def _grid(reference: Levels, error: Levels, factor: int) -> float:
    """The error's pattern of period ``factor``, less what the reference has at each of its frequencies: a change of
    contrast in a picture that has such a pattern itself is no grid.
    """
    if factor == 1:
        return 0.0
    own, added = (np.abs(scipy.fft.fft2(_fold(a, factor), axes=(0, 1))) / factor**2 for a in (reference, error))
    excess = (added - own).clip(min=0)
    return float(np.sqrt(np.sum(excess**2) / excess.shape[2]))


def _fold(levels: Levels, factor: int) -> Levels:
    """(factor, factor, 3): the mean of the middle half of all pixels at the same place of a period: what is at a few of
    the periods only, an edge of the picture or a seam, does not move it.
    """
    # A mean over one period has zeros at just the frequencies that are looked for, and takes all slow change away.
    fast = levels - uniform_filter(levels, (factor, factor, 0))
    height, width = (side // factor for side in levels.shape[:2])
    periods = fast[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    folded: Levels = trim_mean(periods.swapaxes(1, 2).reshape(-1, factor, factor, 3), 0.25)
    return folded


def _seams(reference: Levels, error: Levels, factor: int, tile: int) -> float:
    """A border's jump is compared with those around it, as they are and in proportion to the reference's own (an edge
    of the picture may lie on a border, and errors are larger on edges), and with those whole factors away (a grid).
    """
    excesses: list[float] = []
    for axis in (0, 1):
        own, jumps = (np.abs(np.diff(a, axis=axis)).mean(axis=(1 - axis, 2)) for a in (reference, error))
        own += 1  # a level, so that flat areas have a proportion too
        places = np.arange(len(jumps))
        at_border = (places + 1) % tile == 0
        for border in places[at_border]:
            beside = (np.abs(places - border) <= NEARBY) & ~at_border
            alike = ((places - border) % factor == 0) & ~at_border
            expected = [np.median(jumps[beside]), np.median(jumps[beside] / own[beside]) * own[border]]
            expected += [np.median(jumps[alike])] if alike.any() else []
            excesses.append(max(float(jumps[border] - max(expected)), 0.0))
    return float(np.mean(excesses)) if excesses else 0.0


def _banding(reference: Levels, candidate: Levels) -> float:
    """Compared with its own smoothed self, so that a flatter or blurred picture has lost no level by that."""
    before, after = (gaussian_filter(a, (2, 2, 0)) for a in (reference, candidate))
    slope = np.hypot(*np.gradient(before, axis=(0, 1)))
    gentle = np.percentile(_blocks(slope), 95, axis=1) <= GENTLE
    smooth = gentle & (_blocks(reference - before).std(axis=1) <= CALM)
    if not smooth.any():
        return 0.0
    lost = [_lost(_blocks(a)[smooth], _blocks(b)[smooth]) for a, b in ((candidate, after), (reference, before))]
    return max(lost[0] - lost[1], 0.0)


def _blocks(levels: Levels) -> Levels:
    """(H, W, 3) -> (blocks of each channel, pixels)."""
    height, width = (side // BLOCK * BLOCK for side in levels.shape[:2])
    blocks = view_as_blocks(np.ascontiguousarray(levels[:height, :width]), (BLOCK, BLOCK, 1))
    pixels: Levels = blocks.reshape(-1, BLOCK**2)
    return pixels


def _lost(blocks: Levels, smoothed: Levels) -> float:
    """Of the levels from each smoothed block's lowest to its highest, the share that the block itself has not."""
    few = int(TRIM * blocks.shape[1])
    ordered, expected = (np.sort(np.rint(a), axis=1)[:, few:-few] for a in (blocks, smoothed))
    there = 1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1)
    wanted = 1 + expected[:, -1] - expected[:, 0]
    return float(np.sum((wanted - there).clip(min=0)) / np.sum(wanted))


def _fried(reference: Pixels, candidate: Pixels, sharpening: float) -> float:
    """Where it is rough around a pixel, in either picture, it must stand out by as much more; and where sharpening made
    the picture's own specks stand out more, by as many times more.
    """
    roughness = maximum_filter(reference, (5, 5, 1)).astype(np.int16) - minimum_filter(reference, (5, 5, 1))
    lowest, highest = _surroundings(candidate)
    beyond = np.maximum(candidate - highest, lowest - candidate)
    ordinary = np.maximum(max(sharpening, 1.0) * (OUTLYING + roughness), OUTLYING + highest - lowest)
    return float((beyond > ordinary).any(axis=2).mean()) * 1e6


def _surroundings(pixels: Pixels) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The lowest and the highest of the 16 values two pixels away: a speck may be three pixels wide."""
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    height, width = pixels.shape[:2]
    ring = [
        padded[y : y + height, x : x + width]
        for y, x in itertools.product(range(5), repeat=2)
        if max(abs(y - 2), abs(x - 2)) == 2
    ]
    return np.minimum.reduce(ring).astype(np.int16), np.maximum.reduce(ring).astype(np.int16)


def _is_constant(pixels: Pixels) -> bool:
    return bool((pixels == pixels[0, 0]).all())
