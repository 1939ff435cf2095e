"""Quality -> findings: what is wrong with a picture, in words that a person would use, with the number."""

from __future__ import annotations

import msgspec


class QualityLimit(msgspec.Struct, frozen=True):
    """How far a metric may go before a person would call it a fault, and why.

    name: the fault. metric: its path in ``Quality``. bound: the value may be at most (``upper``) or at least this.
    neutral: the metric's value where there is no fault. unit: for people; empty for ratios. words: a sentence, in which
    ``{value}`` stands for the number. reason: where the bound is from.
    """

    name: str
    metric: str
    bound: float
    upper: bool
    neutral: float
    unit: str
    words: str
    reason: str


class Finding(msgspec.Struct, frozen=True):
    """A fault that can be seen.

    name: ``washed out``, ``over-saturated``, ``grey cast`` (or ``green cast``, ...), ``blurred``, ... as in ``LIMITS``.
    metric: path of the metric in ``Quality``; value, limit: in ``unit``. words: a sentence, with the number in it.
    severity: how many times the limit's distance from the metric's faultless value; over 1.
    """

    name: str
    metric: str
    value: float
    limit: float
    unit: str
    words: str
    severity: float
