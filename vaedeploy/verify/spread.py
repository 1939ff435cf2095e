"""Whether latents of photographs are spread as diffusion models expect: a wrong scale shows in no round trip."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vaedeploy.bundle.golden import GoldenCase
from vaedeploy.source.preset import get_preset
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.origin import Origin

FAR = 2.5
"""The factor by which a standard deviation is far from 1. The scales of known VAEs make it 1 on the training data of
their diffusion models; single crops of verification's photographs have 0.98 to 1.55 with the demo VAE. Without the
scale, it is 5.5 (SD), 7.7 (SDXL) or 2.8 (FLUX.1).
"""


def spread_remark(cases: Sequence[GoldenCase], latent: LatentSpec, origin: Origin) -> str | None:
    """A sentence if the scaled latents of all cases together have a standard deviation that is far from 1.

    None if not, for seeded random weights, and for a preset's own weights, whose scale nobody chose.
    """
    if origin.kind in ("package", "random"):
        return None
    if origin.preset is not None and get_preset(origin.preset).repository == origin.location:
        return None
    deviation = _deviation(cases)
    if deviation == 0 or 1 / FAR <= deviation <= FAR:
        return None
    if isinstance(latent.scale, tuple):
        remedy = f"1 would need each number of the scale times {1 / deviation:.3g}"
    else:
        remedy = f"the scale is {latent.scale:g}, and {latent.scale / deviation:.3g} would give 1"
    return (
        f"the latents of the photographs have a standard deviation of {deviation:.3g} after scaling, and diffusion "
        f"models are trained on about 1: {remedy}. Round trips cannot tell. If your diffusion model was trained with "
        "this scale, leave it as it is"
    )


def _deviation(cases: Sequence[GoldenCase]) -> float:
    """The standard deviation of latents, drawn ones where the encoder gives a distribution."""
    means, *deviations = (
        np.concatenate([part.ravel() for part in parts]).astype(np.float64)
        for parts in zip(*(case.latents.values() for case in cases), strict=True)
    )
    return math.sqrt(means.var() + sum(np.square(part).mean() for part in deviations))
