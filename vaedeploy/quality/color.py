"""The candidate's colours against the reference's, in CIELAB (D65) computed from sRGB."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000

from vaedeploy.quality.planes import Planes

COLORED = 1.0
"""Smallest standard deviation of a*b*, in CIELAB units, with which an image has colours to compare."""


class Color(msgspec.Struct, frozen=True):
    """Colour differences in CIELAB units, where 2.3 is just seen (Mahy et al. 1994), and in CIEDE2000 units, which are
    smaller for strong colours, so that 2.3 does not hold there.

    ciede2000_mean, ciede2000_p95, ciede2000_max: colour difference CIEDE2000 (CIE 142-2001): its mean, 95th percentile
    and maximum over pixels.
    bias_l, bias_a, bias_b: mean of candidate minus reference. L* runs from 0 (black) to 100, a* from green (-) to red
    (+), b* from blue (-) to yellow (+).
    grey_a, grey_b: the a*b* to which the candidate maps grey: the constant of the least-squares line from the
    reference's a*b* to the candidate's, fitted to means over 8x8 pixels. Unlike the bias, it stays 0 where colours only
    fade or strengthen.
    hue_shift: angle by which that line turns a*b*, in degrees, -180 to 180, positive from red towards yellow. A pixel
    counts in proportion to its chroma. 0 where the reference has no colours.
    chroma_ratio: slope of that line: over 1 is over-saturated, under 1 washed out; 1 where the reference has no
    colours. Noise does not raise it.
    white_shift, black_shift: L* at the 99.5th and at the 0.5th percentile, candidate minus reference.
    """

    ciede2000_mean: float
    ciede2000_p95: float
    ciede2000_max: float
    bias_l: float
    bias_a: float
    bias_b: float
    grey_a: float
    grey_b: float
    hue_shift: float
    chroma_ratio: float
    white_shift: float
    black_shift: float

    @property
    def cast(self) -> float:
        """Distance in a*b* by which both the mean and grey have moved, that is, the smaller of the two distances.

        The mean also moves when colours fade; grey's place is extrapolated if the image contains no grey.
        """
        return min(math.hypot(self.bias_a, self.bias_b), math.hypot(self.grey_a, self.grey_b))


def measure_color(reference: Planes, candidate: Planes) -> Color:
    difference = deltaE_ciede2000(reference.lab, candidate.lab)
    bias = (candidate.lab - reference.lab).mean(axis=(0, 1), dtype=np.float64)
    gain, grey = _fit_line(_chroma(reference.form), _chroma(candidate.form))
    ends = [np.percentile(planes.lab[..., 0], (0.5, 99.5)) for planes in (reference, candidate)]
    black, white = ends[1] - ends[0]
    return Color(
        ciede2000_mean=float(difference.mean()),
        ciede2000_p95=float(np.percentile(difference, 95)),
        ciede2000_max=float(difference.max()),
        bias_l=float(bias[0]),
        bias_a=float(bias[1]),
        bias_b=float(bias[2]),
        grey_a=grey.real,
        grey_b=grey.imag,
        hue_shift=math.degrees(math.atan2(gain.imag, gain.real)),
        chroma_ratio=abs(gain),
        white_shift=float(white),
        black_shift=float(black),
    )


def _chroma(lab: NDArray[np.float64]) -> NDArray[np.complex128]:
    """a* + i b*, so that one complex factor expresses both a rotation of hue and a change of chroma."""
    return lab[..., 1] + 1j * lab[..., 2]


def _fit_line(reference: NDArray[np.complex128], candidate: NDArray[np.complex128]) -> tuple[complex, complex]:
    """(gain, constant) of least squares: candidate = gain * reference + constant."""
    means = complex(reference.mean()), complex(candidate.mean())
    centred = reference - means[0]
    variance = float(np.mean(np.abs(centred) ** 2))
    gain = complex(np.mean(centred.conj() * (candidate - means[1]))) / variance if variance >= COLORED**2 else 1 + 0j
    return gain, means[1] - gain * means[0]
