"""Rows and lines of text for the result of ``verify``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vaedeploy.values.words import counted
from vaedeploy.verify.limits import limits_line
from vaedeploy.verify.report import Case, Report
from vaedeploy.verify.verdicts import Verdict
from vaedeploy.verify.words import METRIC_WORDS, METRICS, metric_text, name_of

Row = tuple[str, ...]


def verdict_rows(verdicts: Sequence[Verdict]) -> list[Row]:
    """A row for each part and form: ``passed`` or ``FAILED``, and the sentence that says why."""
    return [("passed" if verdict.passed else "FAILED", verdict.sentence) for verdict in verdicts]


def case_table(cases: Sequence[Case]) -> tuple[Row, list[Row]]:
    """The heads of the columns, and a row for each case. Metrics that none of them has are left out.

    size: batch x height x width, in pixels.
    """
    shown = [metric for metric in METRICS if any(metric_text(case, metric) for case in cases)]
    heads = ("output", "size", *(f"{name_of(metric)}, {METRIC_WORDS[metric][1]}" for metric in shown), "verdict")
    rows = [
        (case.output, case.size, *(metric_text(case, m) for m in shown), "passed" if case.passed else "FAILED")
        for case in cases
    ]
    return heads, rows


def closing_lines(report: Report) -> list[str]:
    """The limits, the faults that a person would see, and last the verdict."""
    failed = sum(not case.passed for case in report.cases)
    lines = [limits_line(precision) for precision in dict.fromkeys(case.precision for case in report.cases)]
    lines += _visible(report.cases)
    if report.pace is not None:
        lines.append(f"pace: a decode takes {report.pace:.2f} of ONNX Runtime's time on this CPU")
    cases = f"{counted(len(report.cases), 'case')} on {report.backend} against {report.reference}"
    return [*lines, f"verified: {cases}" if report.passed else f"FAILED: {failed} of {cases}"]


def _visible(cases: Sequence[Case]) -> list[str]:
    """A line for each fault that a person would see, with the number of cases that have it."""
    found = Counter((case.part, case.form, words) for case in cases for words in case.findings or ())
    if found:
        return [
            f"visible in {part}, {form}: {words}" + (f" ({number} cases)" if number > 1 else "")
            for (part, form, words), number in found.items()
        ]
    if any(case.findings is not None for case in cases):
        return ["visible: no difference from the reference's images"]
    return ["visible: not checked, since no image is large enough or scikit-image is not installed"]
