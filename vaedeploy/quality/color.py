"""Whether the candidate's colours are the reference's: CIELAB (D65) of sRGB."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000

from vaedeploy.quality.planes import Planes

COLORED = 1.0
"""Standard deviation of a*b* under which a picture has no colours to compare."""


class Color(msgspec.Struct, frozen=True):
    """In CIELAB units, of which 2.3 are just seen (Mahy et al. 1994).

    ciede2000_mean, ciede2000_p95, ciede2000_max: colour difference CIEDE2000 (CIE 142-2001) over pixels.
    bias_l, bias_a, bias_b: mean of candidate minus reference. L* is 0 (black) to 100; a* is green (-) to red (+), b* is
    blue (-) to yellow (+).
    grey_a, grey_b: where the candidate puts grey: the constant of the least-squares line from the reference's a*b* to
    the candidate's, of means over 8x8 pixels. Unlike the bias it stays 0 where colours only fade or grow.
    hue_shift: degrees, -180 to 180, positive from red towards yellow: the turn of that line, in which a pixel counts by
    its chroma. 0 where the reference has no colours.
    chroma_ratio: the slope of that line: over 1 is over-saturated, under 1 washed out; 1 where the reference has no
    colours. Noise does not raise it.
    white_shift, black_shift: L* of the 99.5th and of the 0.5th percentile, candidate minus reference.
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
        """By how much a*b* both the mean and grey have moved: the smaller of the two, since the one also moves when
        colours fade, and the other is a guess where the picture has no grey.
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
    """a* + i b*, so that a turn of hue and a change of chroma are one complex factor."""
    return lab[..., 1] + 1j * lab[..., 2]


def _fit_line(reference: NDArray[np.complex128], candidate: NDArray[np.complex128]) -> tuple[complex, complex]:
    """(gain, constant) of least squares: candidate = gain * reference + constant."""
    means = complex(reference.mean()), complex(candidate.mean())
    centred = reference - means[0]
    variance = float(np.mean(np.abs(centred) ** 2))
    gain = complex(np.mean(centred.conj() * (candidate - means[1]))) / variance if variance >= COLORED**2 else 1 + 0j
    return gain, means[1] - gain * means[0]
