"""Artifacts of the candidate: what no photograph should show, and the reference does not."""

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
"""Pixels on either side of a tile border whose jumps are compared with the jump at the border."""

BLOCK = 32
"""Side, in pixels, of the blocks in which ``banding`` counts levels; also the shortest side that can be measured."""

TRIM = 0.02
"""Share of a block's pixels that ``banding`` ignores at either end of their order: a few outliers are not a level."""

GENTLE = 2.0
"""Steepest slope, in levels per pixel, of a smooth area. On a steeper slope a step of a few levels is not seen."""

CALM = 3.0
"""Largest standard deviation of grain, in levels, of a smooth area. More grain than this hides steps."""

OUTLYING = 40
"""The least number of levels by which a fried pixel lies above or below all the pixels around it."""


class Artifacts(msgspec.Struct, frozen=True):
    """The amount of each artifact in the candidate: 0 where it has none.

    grid: RMS, in 8-bit levels, of the pattern that repeats every ``factor`` pixels (that frequency and all its
    harmonics), beyond the same frequencies in the reference.
    seams: by how many 8-bit levels the candidate's error jumps more at tile borders than elsewhere, averaged over all
    borders; None where no tile size was given.
    banding: share (0 to 1) of the levels that smooth areas should run through and skip, less the reference's share.
    fried: isolated pixels per million that stand out from all pixels around them, but not in the reference. A speck of
    three by three pixels counts once, by its middle pixel.
    nonfinite: share (0 to 1) of values that are NaN or infinite; 0 for uint8.
    constant: whether the candidate is a single colour although the reference is not.
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
    """Measure every artifact of the candidate.

    factor, tile, nonfinite: as in ``measure_quality`` and ``Artifacts``. sharpening: that of ``Detail``.
    """
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
    """RMS of the error's pattern of period ``factor``, less the reference's amplitude at each frequency of the pattern:
    a change of contrast in an image that contains such a pattern itself is not a grid.
    """
    if factor == 1:
        return 0.0
    expected, added = (np.abs(scipy.fft.fft2(_fold(a, factor), axes=(0, 1))) / factor**2 for a in (reference, error))
    excess = (added - expected).clip(min=0)
    return float(np.sqrt(np.sum(excess**2) / excess.shape[2]))


def _fold(levels: Levels, factor: int) -> Levels:
    """One average period, (factor, factor, 3).

    Each element is the mean of the middle half of all pixels at the same place in their period. What occurs in only a
    few periods, such as an object's edge or a seam, does not move it.
    """
    # The mean over one period is zero at exactly the frequencies of the pattern, so subtracting it leaves them as they
    # are and removes all slow change.
    fast = levels - uniform_filter(levels, (factor, factor, 0))
    height, width = (side // factor for side in levels.shape[:2])
    periods = fast[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    folded: Levels = trim_mean(periods.swapaxes(1, 2).reshape(-1, factor, factor, 3), 0.25)
    return folded


def _seams(reference: Levels, error: Levels, factor: int, tile: int) -> float:
    """How much larger the error's jump at a tile border is than expected, averaged over all borders.

    The expected jump is the largest of three medians: of the jumps nearby; of the jumps nearby in proportion to those
    of the reference, because an edge of an object may lie on a border, and errors are larger on edges; and of the jumps
    at multiples of ``factor`` pixels from the border, because a grid jumps there as well.
    """
    excesses: list[float] = []
    for axis in (0, 1):
        reference_jumps, jumps = (np.abs(np.diff(a, axis=axis)).mean(axis=(1 - axis, 2)) for a in (reference, error))
        reference_jumps += 1  # one level, so that the proportion is defined in flat areas too
        places = np.arange(len(jumps))
        at_border = (places + 1) % tile == 0
        for border in places[at_border]:
            beside = (np.abs(places - border) <= NEARBY) & ~at_border
            same_phase = ((places - border) % factor == 0) & ~at_border
            expected = [
                np.median(jumps[beside]),
                np.median(jumps[beside] / reference_jumps[beside]) * reference_jumps[border],
            ]
            expected += [np.median(jumps[same_phase])] if same_phase.any() else []
            excesses.append(max(float(jumps[border] - max(expected)), 0.0))
    return float(np.mean(excesses)) if excesses else 0.0


def _banding(reference: Levels, candidate: Levels) -> float:
    """Share of levels that smooth areas have lost.

    Each image is compared with a smoothed copy of itself, so a flatter or blurred candidate loses no levels by that.
    """
    before, after = (gaussian_filter(a, (2, 2, 0)) for a in (reference, candidate))
    slope = np.hypot(*np.gradient(before, axis=(0, 1)))
    gentle = np.percentile(_blocks(slope), 95, axis=1) <= GENTLE
    smooth = gentle & (_blocks(reference - before).std(axis=1) <= CALM)
    if not smooth.any():
        return 0.0
    lost = [_lost(_blocks(a)[smooth], _blocks(b)[smooth]) for a, b in ((candidate, after), (reference, before))]
    return max(lost[0] - lost[1], 0.0)


def _blocks(levels: Levels) -> Levels:
    """(H, W, 3) -> (blocks of all channels, pixels of a block)."""
    height, width = (side // BLOCK * BLOCK for side in levels.shape[:2])
    blocks = view_as_blocks(np.ascontiguousarray(levels[:height, :width]), (BLOCK, BLOCK, 1))
    pixels: Levels = blocks.reshape(-1, BLOCK**2)
    return pixels


def _lost(blocks: Levels, smoothed: Levels) -> float:
    """Share of the levels from each smoothed block's lowest to its highest that do not occur in the block itself."""
    outliers = int(TRIM * blocks.shape[1])
    ordered, expected = (np.sort(np.rint(a), axis=1)[:, outliers:-outliers] for a in (blocks, smoothed))
    present = 1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1)
    wanted = 1 + expected[:, -1] - expected[:, 0]
    return float(np.sum((wanted - present).clip(min=0)) / np.sum(wanted))


def _fried(reference: Pixels, candidate: Pixels, sharpening: float) -> float:
    """Fried pixels per million.

    Where the area around a pixel is rough, in either image, the pixel must stand out by that much more than
    ``OUTLYING``. A sharpened candidate makes real specks stand out more, so there the bound is as many times higher.
    """
    roughness = maximum_filter(reference, (5, 5, 1)).astype(np.int16) - minimum_filter(reference, (5, 5, 1))
    lowest, highest = _surroundings(candidate)
    beyond = np.maximum(candidate - highest, lowest - candidate)
    allowed = np.maximum(max(sharpening, 1.0) * (OUTLYING + roughness), OUTLYING + highest - lowest)
    return float((beyond > allowed).any(axis=2).mean()) * 1e6


def _surroundings(pixels: Pixels) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Lowest and highest of the 16 values two pixels away. The nearer ones do not count: a speck may be three wide."""
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
