"""The names and units of a case's metrics, the same in tables, pages and sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaedeploy.verify.report import Case


METRIC_WORDS: dict[str, tuple[str, str]] = {
    "rel_l2": ("Relative error", "L2"),
    "max_abs": ("Largest error", "output's units"),
    "mean_abs": ("Mean error", "output's units"),
    "psnr": ("PSNR", "dB"),
    "pixels_off": ("Pixels that differ", "% of values"),
    "within_one_level": ("Share within one level", "% of values"),
    "max_levels": ("Largest difference", "of 255 levels"),
}
"""Each metric's name and unit, wherever it is shown."""

METRICS = ("rel_l2", "max_abs", "psnr", "pixels_off", "max_levels")
"""The metrics that a table shows of each case, in the terminal and on the page."""


def name_of(metric: str) -> str:
    """A metric's name within a sentence."""
    name = METRIC_WORDS[metric][0]
    return name if name.isupper() else name.lower()


def amount(metric: str, value: float | None) -> str:
    """A metric's value with its unit, for a sentence. value: as in a manifest, None if it is not finite."""
    if metric == "psnr" and (value is None or math.isinf(value)):
        return "no difference"
    if value is None or not math.isfinite(value):
        return "not finite"
    unit = METRIC_WORDS[metric][1]
    if unit.startswith("%"):
        return f"{100 * value:.4g}{unit}"
    return f"{value:.3g}" if metric in ("rel_l2", "max_abs", "mean_abs") else f"{value:.3g} {unit}"


def metric_text(case: Case, metric: str) -> str:
    """A case's metric as a table shows it, in the unit of its column; empty where the case does not have it."""
    value = getattr(case, metric)
    if case.pixels_off is not None and metric == "psnr" and value is None:
        return "identical"
    if value is None:
        return ""
    if metric == "pixels_off":
        return f"{100 * value:.2f}"
    return f"{value:.1f}" if metric == "psnr" else f"{value}" if metric == "max_levels" else f"{value:.1e}"
