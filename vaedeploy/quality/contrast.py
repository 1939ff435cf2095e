"""Whether the candidate has the reference's contrast and brightness."""

from __future__ import annotations

import msgspec


class Contrast(msgspec.Struct, frozen=True):
    """Ratios are candidate over reference; 1 is equal, and under 1 is flatter.

    global_ratio: of the standard deviations of L*; 1 where the reference has none.
    local_ratio: of RMS contrast (the standard deviation of L*) in windows of 16x16 pixels: the median over windows in
    which the reference has some; 1 where there is none.
    mid_shift: what the candidate makes of mid grey (L* 50), minus 50, in L*: by the line of least squares, so that a
    change of contrast about mid grey leaves it 0.
    tone_curve: (reference level, mean candidate level) in luma, 0 to 255, for each of up to 33 levels that the
    reference has pixels at.
    """

    global_ratio: float
    local_ratio: float
    mid_shift: float
    tone_curve: tuple[tuple[float, float], ...]
