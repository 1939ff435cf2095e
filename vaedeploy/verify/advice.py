"""What to do about the graphs of a bisection, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from vaedeploy.values.kinds import Precision
from vaedeploy.values.words import counted
from vaedeploy.verify.report import Case, Report
from vaedeploy.verify.traces import Bisection, Trace

__all__ = ["advise"]

SMALLEST_NORMAL = 2.0**-14
"""The smallest float16 with all 11 significant bits."""

FINER: dict[Precision, str] = {
    "fp16": "fp32, and not bf16, which has 8 times coarser digits",
    "bf16": "fp16, which has 8 times finer digits, or fp32",
}
"""Half precision -> the precisions with more digits."""


def advise(bisection: Bisection, report: Report | None) -> tuple[str, ...]:
    """What to do about each graph that was bisected, a line each. report: the one that was given to the bisection."""
    failed = [case for case in report.cases if not case.passed] if report else []
    if bisection.traces:
        return tuple(_advise(trace, failed) for trace in bisection.traces)
    reason = "the portable graphs themselves failed" if failed else "the bundle has only the portable graphs"
    return (f"There is nothing to compare: {reason}, which others are compared with.",)


def _advise(trace: Trace, failed: Sequence[Case]) -> str:
    """What to do about one graph."""
    name = f"{trace.part}, {trace.form}"
    if not trace.jumps:
        return f"{name}: {_explain_growth(trace, failed)}"
    first = trace.jumps[0]
    place = f"{first.tensor} ({first.operator}{f' of {first.module}' if first.module else ''})"
    if trace.precision == "fp16" and 0 < first.largest < SMALLEST_NORMAL and not first.non_finite:
        cause = (
            f"{place} loses digits: no number there is larger than {first.largest:.3g}, and below "
            f"{SMALLEST_NORMAL:.3g} float16 has fewer the smaller a number is"
        )
    else:
        cause = f"{place} is the first that loses digits"
    if not failed and trace.precision != "fp32" and not first.non_finite:
        return f"{name}: {cause}. Every case still keeps its limits. There is nothing to do."
    nodes = ", ".join(dict.fromkeys(step.node for step in trace.jumps))
    keep = f"keep these nodes in float32 (--keep-fp32, once for each): {nodes}"
    if trace.precision == "fp32":
        return (
            f"{name}: {place} is the first that differs from the portable graph. This is not rounding: that tensor's "
            "weights or nodes differ. Export the bundle again with --force; if it stays, a rewrite is at fault, and "
            "--no-rewrite goes without them."
        )
    if trace.precision == "fp16" and first.non_finite:
        fits = first.headroom is None or first.headroom >= 0
        reach = f"float32 reaches no more than {first.largest:.3g} there" if fits else f"it reaches {first.largest:.3g}"
        cause = f"{place} overflows: {reach}, and float16 ends at 65504"
        rescaling = (
            "It was rescaled, by what calibration.json measured, and this input exceeds that: export it again with "
            "--photos of this kind"
            if trace.rescaled
            else "Rescale it: export it again without --no-rewrite, which changes no result"
        )
        return f"{name}: {cause}. {rescaling}; or {keep}; or --precision bf16, which has float32's range."
    other = "--precision bf16, if it is range that is missing, or fp32" if trace.precision == "fp16" else "fp16 or fp32"
    return f"{name}: {cause}. In this order: {keep}; or export with {other}."


def _explain_growth(trace: Trace, failed: Sequence[Case]) -> str:
    """What to do about a graph in which no tensor's error jumps."""
    worst = trace.worst
    where = counted(trace.compared, "tensor")
    fact = f"nothing jumps in {where}; the largest error is {worst.after:.1e}, in {worst.tensor}"
    if not failed:
        return f"{fact}. There is nothing to do."
    if any(case.form == "portable" for case in failed):
        return (
            f"{fact}. It computes what the portable graph does, which failed as well: the fault is in the export or in "
            "the reference, and no precision or rewrite will mend it. Export the bundle again with --force."
        )
    if trace.precision == "fp32":
        return (
            f"{fact}. Node by node it computes what the portable graph does: what is left are ONNX Runtime's own "
            "optimisations, which are off here, and the reference. Verify it again with --photos or --weights."
        )
    return (
        f"{fact}. The error is rounding, and adds up by small steps, so that no node stands out for --keep-fp32: "
        f"export with --precision {FINER[trace.precision]}."
    )
