"""The limits that each precision must keep, and the reasons for them."""

from __future__ import annotations

from typing import Literal

import msgspec

from vaedeploy.values.kinds import Precision
from vaedeploy.verify.words import amount, name_of

Metric = Literal["rel_l2", "max_levels", "within_one_level", "psnr"]


class Limit(msgspec.Struct, frozen=True):
    """What a metric may be at most (where ``upper``) or must be at least, and the reason."""

    metric: Metric
    bound: float
    upper: bool
    reason: str

    def allows(self, value: float | None) -> bool:
        """Whether ``value`` keeps the limit. None, for a metric that the case does not have, keeps it; NaN does not."""
        return value is None or (value <= self.bound if self.upper else value >= self.bound)

    @property
    def words(self) -> str:
        """The limit in words, such as ``at most 1 of 255 levels``."""
        return f"at {'most' if self.upper else 'least'} {amount(self.metric, self.bound)}"


LIMITS: dict[Precision, tuple[Limit, ...]] = {
    "fp32": (
        Limit("rel_l2", 2e-5, True, "PyTorch's own float32 is 1e-6 to 5e-6 off float64; several times that is a fault"),
        Limit("max_levels", 1, True, "a value on the edge of two levels may fall either way, and no further"),
    ),
    "fp16": (
        Limit(
            "rel_l2",
            5e-3,
            True,
            "half precision rounds to 5e-4; ten times that is a fault, or rounding that adds up: --bisect tells which",
        ),
        Limit("within_one_level", 0.999, False, "one level of 255 is not seen; one pixel in a thousand may exceed it"),
    ),
    "bf16": (
        Limit("rel_l2", 3e-2, True, "bfloat16 rounds to 4e-3; some times that adds up over a hundred layers"),
        Limit("psnr", 40.0, False, "in dB; differences are not seen above 40"),
    ),
}


def bound_of(precision: Precision, metric: Metric) -> float:
    """The bound of the one limit that ``precision`` has on ``metric``."""
    return next(limit.bound for limit in LIMITS[precision] if limit.metric == metric)


def limits_line(precision: Precision) -> str:
    """All limits of a precision, in words."""
    limits = ", ".join(f"{name_of(limit.metric)} {limit.words}" for limit in LIMITS[precision])
    return f"Limits of {precision}: {limits}"
