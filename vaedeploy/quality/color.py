"""Whether the candidate's colours are the reference's: CIELAB (D65) of sRGB."""

from __future__ import annotations

import math

import msgspec


class Color(msgspec.Struct, frozen=True):
    """In CIELAB units: 1 is about the least difference that is seen side by side.

    ciede2000_mean, ciede2000_p95, ciede2000_max: colour difference CIEDE2000 (CIE 142-2001) over pixels.
    bias_l, bias_a, bias_b: mean of candidate minus reference. L* is 0 (black) to 100; a* is green (-) to red (+), b* is
    blue (-) to yellow (+).
    cast_a, cast_b: where the candidate puts grey: the constant of the least-squares line from the reference's a*b* to
    the candidate's. Unlike the bias it stays 0 where colours only fade or grow.
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
    cast_a: float
    cast_b: float
    hue_shift: float
    chroma_ratio: float
    white_shift: float
    black_shift: float

    @property
    def cast(self) -> float:
        """How far the candidate puts grey from grey, in a*b*."""
        return math.hypot(self.cast_a, self.cast_b)
