"""The candidate's opacity against the reference's, as a channel of its own."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy.values.latent import RGB


class Opacity(msgspec.Struct, frozen=True):
    """Differences of opacity in 8-bit levels, where 0 is transparent and 255 opaque.

    mean_abs, max_abs: the mean and the largest absolute difference over pixels. bias: mean of candidate minus
    reference.
    """

    mean_abs: float
    max_abs: int
    bias: float


def measure_opacity(reference: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> Opacity:
    """reference, candidate: (H, W, 4) uint8."""
    difference = candidate[..., RGB].astype(np.int16) - reference[..., RGB]
    return Opacity(
        mean_abs=float(np.abs(difference).mean()), max_abs=int(np.abs(difference).max()), bias=float(difference.mean())
    )
