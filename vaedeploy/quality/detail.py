"""Whether the candidate has the reference's detail: the spectrum of luma, by octave."""

from __future__ import annotations

import msgspec


class Detail(msgspec.Struct, frozen=True):
    """By octave, finest first: band 0 is a quarter to half a cycle per pixel (Nyquist), each next one half of that.

    octaves: energy ratio, candidate over reference: the geometric mean over the band's frequencies, so that a few
    peaks (a grid) do not pass for detail. What lies below the noise of two levels counts as equal.
    gains: amplitude of what the candidate shares with the reference (cross spectrum over power spectrum): 1 is equal.
    Unlike energy it is not raised by noise or artifacts.
    sharpness: the lowest ``octaves`` of the fine bands over that of the coarse ones: under 1 is blurred.
    sharpening: the highest ``gains`` of the fine bands over that of the coarse ones: over 1 is over-sharpened.
    """

    octaves: tuple[float, ...]
    gains: tuple[float, ...]
    sharpness: float
    sharpening: float
