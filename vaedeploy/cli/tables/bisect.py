"""A bisection's first steps as rows."""

from __future__ import annotations

from vaedeploy.values.shapes import size_text
from vaedeploy.verify.bisect import Bisection

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
"""case: batch x height x width. before, after: relative L2 error. 2^: the headroom to 65504, in powers of two."""

STEPS_SHOWN = 5
"""Of a graph: what jumps first matters most."""


def step_rows(bisection: Bisection) -> list[tuple[str, ...]]:
    """A row for each of a graph's first jumps, in ``STEP_COLUMNS``."""
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
