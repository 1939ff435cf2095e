"""Rows of text for the result of a bisection, in the terminal and on the page."""

from __future__ import annotations

from vaedeploy.values.shapes import size_text
from vaedeploy.verify.traces import Bisection

STEP_COLUMNS = (
    "graph",
    "part",
    "case",
    "module",
    "operator",
    "tensor",
    "before",
    "after",
    "largest",
    "2^",
    "not finite",
)
"""case: batch x height x width, in pixels. before, after: the largest relative L2 error of the tensors from which this
one is computed, and its own. largest: the largest magnitude. 2^: the headroom to 65504, the largest number of fp16, in
powers of two. not finite: the share of elements that are NaN or infinite.
"""

STEPS_SHOWN = 5
"""The most rows for one graph. The first tensors that go wrong matter most: later errors follow from them."""


def step_rows(bisection: Bisection) -> list[tuple[str, ...]]:
    """A row, in ``STEP_COLUMNS``, for each of the first ``STEPS_SHOWN`` tensors of a graph whose error jumps."""
    return [
        (
            f"{trace.form} {trace.precision}",
            trace.part,
            size_text(trace.batch, trace.height, trace.width),
            step.module,
            step.operator,
            step.tensor,
            f"{step.before:.1e}",
            f"{step.after:.1e}",
            f"{step.largest:.3g}",
            "" if step.headroom is None else f"{step.headroom:+.1f}",
            f"{step.non_finite:.2%}",
        )
        for trace in bisection.traces
        for step in trace.jumps[:STEPS_SHOWN]
    ]
