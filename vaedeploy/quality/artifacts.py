"""What the candidate has that no photograph should have, and that the reference has not."""

from __future__ import annotations

import msgspec


class Artifacts(msgspec.Struct, frozen=True):
    """Each is 0 where there is nothing.

    grid: RMS, in 8-bit levels, of the pattern that repeats every ``factor`` pixels (its frequency and all harmonics),
    as far as it exceeds the reference's.
    seams: 8-bit levels by which the candidate's error jumps more at tile borders than elsewhere, in the mean over all
    borders; None where no tile size was given.
    banding: share (0 to 1) of the levels that smooth areas should run through and do not, above the reference's own.
    fried: isolated pixels that stand out from all around them and do not in the reference, per million pixels.
    nonfinite: share (0 to 1) of values that are NaN or infinite; 0 for bytes.
    constant: the candidate is one colour where the reference is not.
    """

    grid: float
    seams: float | None
    banding: float
    fried: float
    nonfinite: float
    constant: bool
