"""The candidate's contrast and brightness against the reference's."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray
from skimage.util import view_as_blocks

from vaedeploy.quality.planes import Planes

WINDOW = 16
"""Side, in pixels, of the windows in which local contrast is measured."""

SOME = 1.0
"""Smallest standard deviation of L* with which an image or a window has contrast to compare."""

TONES = 33
"""Number of levels of the tone curve, eight 8-bit levels apart."""


class Contrast(msgspec.Struct, frozen=True):
    """Contrast and brightness. Ratios are candidate over reference: 1 is equal, and under 1 is flatter.

    global_ratio: ratio of the standard deviations of L*, over means of 8x8 pixels; 1 where the reference has no
    contrast.
    local_ratio: ratio of the RMS contrast (the standard deviation of L*) in windows of 16x16 pixels: the median over
    those windows in which the reference has contrast; 1 where there is no such window.
    mid_shift: by how much L* both the mean and mid grey (L* 50, mapped by the least-squares line) have moved, that is,
    the smaller of the two; 0 where they differ in sign. So a change of contrast leaves it 0, in dark images too.
    tone_curve: (reference level, mean candidate level) in luma, 0 to 255, for each of the 33 levels at which the
    reference has pixels.
    """

    global_ratio: float
    local_ratio: float
    mid_shift: float
    tone_curve: tuple[tuple[float, float], ...]


def measure_contrast(reference: Planes, candidate: Planes) -> Contrast:
    before, after = reference.form[..., 0], candidate.form[..., 0]
    spreads = float(before.std()), float(after.std())
    return Contrast(
        global_ratio=spreads[1] / spreads[0] if spreads[0] >= SOME else 1.0,
        local_ratio=_local_ratio(reference.lab[..., 0], candidate.lab[..., 0]),
        mid_shift=_mid_shift(before, after),
        tone_curve=_tone_curve(reference.luma, candidate.luma),
    )


def _local_ratio(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> float:
    before, after = (_windows(lightness).std(axis=(2, 3)) for lightness in (reference, candidate))
    contrasty = before >= SOME
    return float(np.median(after[contrasty] / before[contrasty])) if contrasty.any() else 1.0


def _windows(lightness: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = (side // WINDOW * WINDOW for side in lightness.shape)
    windows: NDArray[np.float32] = view_as_blocks(np.ascontiguousarray(lightness[:height, :width]), (WINDOW, WINDOW))
    return windows


def _mid_shift(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    mean = float(reference.mean())
    centred = reference - mean
    variance = float(np.mean(centred**2))
    slope = float(np.mean(centred * candidate)) / variance if variance >= SOME**2 else 1.0
    shifts = float(candidate.mean()) - mean, float(candidate.mean()) + slope * (50 - mean) - 50
    return min(shifts, key=abs) if shifts[0] * shifts[1] > 0 else 0.0


def _tone_curve(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> tuple[tuple[float, float], ...]:
    tones = np.rint(reference * ((TONES - 1) / 255)).astype(np.intp).ravel()
    counts = np.bincount(tones, minlength=TONES)
    occupied = counts > 0
    sums = [np.bincount(tones, luma.ravel(), TONES)[occupied] for luma in (reference, candidate)]
    levels = [(total / counts[occupied]).tolist() for total in sums]
    return tuple(zip(*levels, strict=True))
