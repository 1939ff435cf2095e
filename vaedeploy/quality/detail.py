"""The candidate's detail against the reference's: the spectrum of luma, by octave."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from vaedeploy.quality.planes import Planes

Spectrum = NDArray[np.complex64]

NOISE = 2.0
"""RMS, in 8-bit levels, of white noise that is not seen in a photograph. Nobody misses detail weaker than that."""

FINE = 3
"""Number of octaves that count as detail: periods of 2 to 16 pixels. Coarser ones are form; their gain is contrast."""


class Detail(msgspec.Struct, frozen=True):
    """Detail by octave, finest first. Band 0 runs from a quarter to half a cycle per pixel (Nyquist), and every further
    band lies at half the frequencies of the one before.

    octaves: energy ratio, candidate over reference: the geometric mean over the band's frequencies, so that a few
    peaks (a grid) do not pass for detail. Frequencies weaker than white noise of two levels count as equal.
    gains: amplitude of what the candidate shares with the reference (cross spectrum over power spectrum): 1 is equal.
    Unlike the energy, it is not raised by noise and artifacts.
    sharpness: the lowest energy ratio of a fine band, after the candidate is scaled to the reference's contrast in the
    coarse bands: under 1 is blurred.
    sharpening: the highest gain of a fine band, after the same scaling: over 1 is over-sharpened.
    """

    octaves: tuple[float, ...]
    gains: tuple[float, ...]
    sharpness: float
    sharpening: float

    @property
    def fine(self) -> float:
        """Share of the reference's fine detail (periods of 2 to 16 pixels) that the candidate has: 1 is all of it."""
        return float(np.mean(self.gains[:FINE]))


def measure_detail(reference: Planes, candidate: Planes) -> Detail:
    shape = reference.luma.shape
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in shape)).astype(np.float32)
    noise = NOISE**2 * float(np.sum(window**2, dtype=np.float64))  # power of the noise in each bin
    before, after = (scipy.fft.rfft2((p.luma - p.luma.mean()) * window) for p in (reference, candidate))
    bands = _octaves(shape)
    fine = bands[: min(FINE, len(bands) - 1)]
    contrast = _gain(before, after, np.logical_or.reduce(bands[len(fine) :]), noise)
    # Sharpness must not depend on contrast. Outside 0.1 to 10 there is no contrast that could be matched.
    matched = after / min(max(contrast, 0.1), 10.0)
    return Detail(
        octaves=tuple(_energy_ratio(before, after, band, noise) for band in bands),
        gains=tuple(_gain(before, after, band, noise) for band in bands),
        sharpness=min(_energy_ratio(before, matched, band, noise) for band in fine),
        sharpening=max(_gain(before, matched, band, noise) for band in fine),
    )


def _octaves(shape: tuple[int, ...]) -> list[NDArray[np.bool_]]:
    """Mask of each octave's bins, finest first. The coarsest has periods of a quarter to half of the shorter side."""
    height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    octave = np.floor(-np.log2(np.maximum(frequency, 1 / max(shape))) - 1).clip(min=0)
    return [octave == n for n in range(int(math.log2(min(shape))) - 2)]


def _energy_ratio(before: Spectrum, after: Spectrum, band: NDArray[np.bool_], noise: float) -> float:
    powers = [np.abs(spectrum[band]).astype(np.float64) ** 2 + noise for spectrum in (before, after)]
    return float(np.exp(np.mean(np.log(powers[1] / powers[0]))))


def _gain(before: Spectrum, after: Spectrum, band: NDArray[np.bool_], noise: float) -> float:
    shared = float(np.sum((before[band].conj() * after[band]).real, dtype=np.float64))
    power = float(np.sum(np.abs(before[band]) ** 2, dtype=np.float64))
    unseen = noise * int(band.sum())
    return (shared + unseen) / (power + unseen)
