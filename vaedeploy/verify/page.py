"""Report -> Document: what the page of ``vaedeploy verify`` shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from vaedeploy.page.document import Cell, Column, Document, Table, Tone
from vaedeploy.page.write import write_page
from vaedeploy.quality.candidates import Picture
from vaedeploy.values.words import counted
from vaedeploy.verify.limits import limits_line
from vaedeploy.verify.report import Case, Report
from vaedeploy.verify.words import METRIC_WORDS, METRICS, metric_text

MEANINGS = {
    "rel_l2": "Length of the error over length of what PyTorch gives: 0 is equal.",
    "max_abs": "A picture spans 2, from -1 to 1.",
    "psnr": "Of 8-bit pixels. From 40 on no difference is seen.",
    "pixels_off": "Share of 8-bit values that differ by at least one level of 255.",
    "max_levels": "Of 8-bit values. One level is not seen.",
}
"""How to read each of ``METRICS``, for the heads of the table's columns."""


def write_verification(bundle: Path, report: Report, pictures: Sequence[Picture], folder: str | Path) -> None:
    """Write the page of a bundle's verification into ``folder``. Raises PageError, which holds the report, where that
    fails.
    """
    write_page(verification_document(bundle.resolve().name, report, pictures), folder, report)


def verification_document(name: str, report: Report, pictures: Sequence[Picture]) -> Document:
    """What the page shows. name: the bundle's, for the title."""
    return Document(
        title=f"{name}: {report.precision} on {report.backend}, against {report.reference}",
        verdict=_verdict(report),
        tone=_tone(report),
        sentences=_sentences(report, pictures),
        reference="PyTorch",
        pictures=tuple(pictures),
        tables=(_cases(report),),
    )


def _seen(report: Report) -> list[str]:
    """The findings of all cases, each once."""
    return list(dict.fromkeys(words for case in report.cases for words in case.findings or ()))


def _verdict(report: Report) -> str:
    failed = sum(not case.passed for case in report.cases)
    if failed:
        return f"Failed: {failed} of {counted(len(report.cases), 'case')} are further from PyTorch than allowed"
    if _seen(report):
        return f"Verified: all {len(report.cases)} cases are within their limits, but something can be seen"
    return f"Verified: all {len(report.cases)} checks passed"


def _tone(report: Report) -> Tone:
    if not report.passed:
        return "bad"
    return "mixed" if _seen(report) else "good"


def _sentences(report: Report, pictures: Sequence[Picture]) -> tuple[str, ...]:
    missed = [
        f"{case.form} {case.part}, {case.size}, {case.output}: {failure}."
        for case in report.cases
        for failure in case.failures
    ]
    if not pictures:
        return (*missed, "No image was large enough to be looked at.")
    return (*missed, *(_seen(report) or ["No difference from PyTorch's images can be seen."]))


def _cases(report: Report) -> Table:
    columns = (
        Column("Graph"),
        Column("Part"),
        Column("Output"),
        Column("Size", "items x height x width"),
        *(Column(*METRIC_WORDS[metric], MEANINGS[metric]) for metric in METRICS),
        Column("Verdict"),
    )
    precisions = dict.fromkeys(case.precision for case in report.cases)
    limits = " ".join(f"{limits_line(precision)}." for precision in precisions)
    return Table(
        "All cases",
        f"Each row is one output at one size, compared with PyTorch. {limits}",
        columns,
        tuple(_row(case) for case in report.cases),
    )


def _row(case: Case) -> tuple[Cell, ...]:
    return (
        Cell(case.form),
        Cell(case.part),
        Cell(case.output),
        Cell(case.size, case.batch * case.height * case.width),
        *(_cell(case, metric) for metric in METRICS),
        Cell("passed" if case.passed else "FAILED"),
    )


def _cell(case: Case, metric: str) -> Cell:
    """A metric's cell. Identical images sort as the highest PSNR, and outputs without pixels below all others."""
    text, value = metric_text(case, metric), getattr(case, metric)
    if value is None:
        value = math.inf if text else -math.inf
    return Cell(text, value)
