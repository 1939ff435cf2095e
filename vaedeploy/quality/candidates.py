"""Images that were judged against their reference."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy.images.cut import Cut
from vaedeploy.quality.measure import Quality
from vaedeploy.quality.verdicts import Finding

Pixels = NDArray[np.uint8]


class Candidate(msgspec.Struct, frozen=True, eq=False):
    """One image, judged against its reference.

    name: which VAE or backend made it. pixels: (H, W, 3) or (H, W, 4) uint8, of the reference's shape. quality,
    findings: those of ``pixels`` against the reference.
    """

    name: str
    pixels: Pixels
    quality: Quality
    findings: tuple[Finding, ...]


class Picture(msgspec.Struct, frozen=True, eq=False):
    """One scene: the reference image, (H, W, 3) or (H, W, 4) uint8, and one or more candidates.

    cut: the part of a picture that the reference is; None for a whole picture.
    """

    name: str
    reference: Pixels
    candidates: tuple[Candidate, ...]
    cut: Cut | None = None
