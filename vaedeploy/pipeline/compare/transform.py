"""Finding the simple change of a latent that makes another decoder understand it: order of channels, signs, scale and
shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, minimize_scalar

from vaedeploy.pipeline.compare.result import Cause, Transform

Latent = NDArray[np.float32]

SAME_SCALE = 0.02
"""The relative difference of scale that counts as none: it changes contrast by less than can be seen."""

SAME_SHIFT = 0.02
"""The shift that counts as none, in standard deviations of a latent, which are about 1."""

RANGE = 4.0
"""Scales are tried from 1 / RANGE to RANGE without a guess, and up to a factor of its square root around the best
one.
"""

REACH = 0.25
"""Shifts are tried this far to either side of the best one, in units of the scaled latent."""

SIMPLER = 0.5
"""dB of PSNR that another order, other signs or a shift must gain to be believed."""


def apply(transform: Transform, latent: Latent) -> Latent:
    """``latent`` (B, C, h, w) after the transform."""
    gains = transform.scale * np.array(transform.signs)[:, None, None]
    return (latent[:, list(transform.order)] * gains + transform.shift).astype(np.float32)


def identity(channels: int) -> Transform:
    """The transform that changes nothing."""
    return Transform(tuple(range(channels)), (1,) * channels, 1.0, 0.0)


def causes(transform: Transform) -> tuple[Cause, ...]:
    """The faults that a transform undoes, the gravest first; empty where its effect is too small to be seen."""
    found: list[Cause] = []
    if list(transform.order) != sorted(transform.order):
        found.append("permuted channels")
    if -1 in transform.signs:
        found.append("sign flip")
    if abs(math.log(transform.scale)) > SAME_SCALE:
        found.append("wrong scale")
    if abs(transform.shift) > SAME_SHIFT:
        found.append("wrong shift")
    return tuple(found)


def fit_transform(source: Latent, target: Latent, *, straight: bool = False) -> Transform:
    """The transform that brings ``source`` nearest to ``target``, both (B, C, h, w) and of the same places.

    Channels are paired by the assignment with the largest sum of absolute correlations; ``straight`` leaves their order
    and signs as they are. The scale is the geometric mean of the ratios of standard deviations, which, unlike the slope
    of a regression, is not lowered by noise.
    """
    channels = source.shape[1]
    a, b = (np.moveaxis(z.astype(np.float64), 1, 0).reshape(channels, -1) for z in (source, target))
    spread_a, spread_b = (np.maximum(z.std(axis=1), 1e-6) for z in (a, b))
    order, signs = np.arange(channels), np.ones(channels, dtype=int)
    if not straight:
        centred = [(z - z.mean(axis=1, keepdims=True)) / s[:, None] for z, s in ((b, spread_b), (a, spread_a))]
        correlation = centred[0] @ centred[1].T / a.shape[1]
        order = linear_sum_assignment(-np.abs(correlation))[1]
        signs = np.where(correlation[np.arange(channels), order] < 0, -1, 1)
    scale = float(np.exp(np.mean(np.log(spread_b / spread_a[order]))))
    shift = float(np.mean(b.mean(axis=1) - scale * signs * a.mean(axis=1)[order]))
    return Transform(tuple(order.tolist()), tuple(signs.tolist()), scale, shift)


def find_transform(guesses: list[Transform], likeness: Callable[[Transform], float]) -> Transform:
    """The transform with the highest ``likeness``, in dB: the best of the guesses, with its shift and scale refined.

    Of several transforms that are about as good, the simplest is taken.
    """
    plain = identity(len(guesses[0].order))
    scales = [msgspec.structs.replace(plain, scale=scale) for scale in (1 / RANGE, RANGE**-0.5, RANGE**0.5, RANGE)]
    known = [plain, *scales, *guesses]
    tried = {t: likeness(t) for t in (*known, *(msgspec.structs.replace(t, shift=0.0) for t in known))}
    complexity = {t: ((t.order, t.signs) != (plain.order, plain.signs)) + (t.shift != 0) for t in tried}
    best = max(tried, key=lambda t: tried[t] - SIMPLER * complexity[t])
    if best.shift:
        best = _refine(best, likeness, "shift", (best.shift - REACH, best.shift + REACH))
    return _refine(best, likeness, "scale", (best.scale * RANGE**-0.5, best.scale * RANGE**0.5))


def _refine(
    best: Transform, likeness: Callable[[Transform], float], name: str, bounds: tuple[float, float]
) -> Transform:
    """``best`` with the value of its field ``name``, between ``bounds``, that gives the highest ``likeness``."""

    def lost(value: float) -> float:
        return -likeness(msgspec.structs.replace(best, **{name: float(value)}))

    found = minimize_scalar(lost, bounds=bounds, method="bounded", options={"xatol": 2e-3})
    return msgspec.structs.replace(best, **{name: float(found.x)}) if -found.fun > likeness(best) else best
