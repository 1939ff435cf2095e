"""Report -> Document: what the page of ``vaedeploy verify`` shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from vaedeploy.images.cut import MOST_TOLD
from vaedeploy.page.document import Cell, Column, Document, Table, Tone
from vaedeploy.page.measures import PSNR
from vaedeploy.page.write import write_page
from vaedeploy.quality.candidates import Picture
from vaedeploy.verify.limits import limits_line
from vaedeploy.verify.looks import label_of
from vaedeploy.verify.report import Case, Report
from vaedeploy.verify.steps import step_rows
from vaedeploy.verify.traces import Bisection
from vaedeploy.verify.verdicts import Verdict, find_verdicts
from vaedeploy.verify.words import METRIC_WORDS, METRICS, metric_text

REFERENCE = "PyTorch"
"""What the reference's images are called."""

MEANINGS = {
    "rel_l2": "Length of the error over length of what PyTorch gives: 0 is equal.",
    "max_abs": "A picture spans 2, from -1 to 1.",
    "psnr": f"Of 8-bit pixels. {PSNR.column.meaning}",
    "pixels_off": "Share of 8-bit values that differ by at least one level of 255.",
    "max_levels": "Of 8-bit values. One level is not seen.",
}
"""How to read each of ``METRICS``, for the table's column heads."""


WORDS = 6
"""How many columns of ``step_rows`` are words; the others are numbers."""

STEPS = (
    *map(Column, ("Graph", "Part", "Size", "Module", "Operator", "Tensor")),
    Column("Error before", "relative L2", "The largest error of what the tensor is computed from."),
    Column("Error after", "relative L2", "Its own error."),
    Column("Largest", "magnitude", "The largest number that the graph had to hold there."),
    Column("Room", "powers of two", "From the largest number to 65504, where float16 ends. Under 0 it overflows."),
    Column("Not finite", "of elements", "The share that is NaN or infinite."),
)
"""The columns of ``step_rows``, as a reader of the page needs them."""


def write_verification(bundle: Path, report: Report, pictures: Sequence[Picture], folder: str | Path) -> None:
    """Write the page of a bundle's verification into ``folder``. Raises PageError, which holds the report, where that
    fails.
    """
    write_page(verification_document(bundle.resolve().name, report, pictures), folder, report)


def verification_document(name: str, report: Report, pictures: Sequence[Picture]) -> Document:
    """What the page shows. name: the bundle's, for the title."""
    advice = report.bisection.advice if report.bisection else ()
    failed = sorted((v for v in find_verdicts(report) if not v.passed), key=_gravity)
    seen = _seen(report)
    opens = _opens(failed, pictures)
    return Document(
        title=f"{name}: {report.precision} on {report.backend}, against {report.reference}",
        verdict=_verdict(report, failed, seen),
        tone=_tone(report, seen),
        sentences=_sentences(failed, pictures, seen),
        reference=REFERENCE,
        # The picture that shows the fault comes first.
        pictures=tuple(sorted(pictures, key=lambda p: opens is not None and opens[1] not in _names(p))),
        answer=_steps(report.bisection),
        tables=(_cases(report),),
        further=(*advice, *(f"{verdict.sentence}." for verdict in failed[1:])),
        opens=opens,
    )


def _seen(report: Report) -> list[str]:
    """The findings of all cases, each once."""
    return list(dict.fromkeys(words for case in report.cases for words in case.findings or ()))


def _gravity(verdict: Verdict) -> tuple[bool, bool]:
    """Sort key of failures: non-finite numbers first, and a half, which has the cause, before a round trip."""
    return all(math.isfinite(case.rel_l2) for case in verdict.cases), verdict.part == "round trip"


def _names(picture: Picture) -> list[str]:
    return [candidate.name for candidate in picture.candidates]


def _opens(failed: Sequence[Verdict], pictures: Sequence[Picture]) -> tuple[str, str] | None:
    """PyTorch and the gravest failed form that has a picture; None where there is none."""
    shown = {name for picture in pictures for name in _names(picture)}
    labels = [label_of(verdict.form) for verdict in failed if verdict.part != "encoder"]
    return next(((REFERENCE, label) for label in labels if label in shown), None)


def _verdict(report: Report, failed: Sequence[Verdict], seen: Sequence[str]) -> str:
    if failed:
        return f"Failed: {failed[0].sentence}"
    if not report.cases:
        return "Failed: nothing was compared"
    if seen:
        return f"Verified: all {len(report.cases)} cases are within their limits, but something can be seen"
    return f"Verified: all {len(report.cases)} checks passed"


def _tone(report: Report, seen: Sequence[str]) -> Tone:
    if not report.passed:
        return "bad"
    return "mixed" if seen else "good"


def _sentences(failed: Sequence[Verdict], pictures: Sequence[Picture], seen: Sequence[str]) -> tuple[str, ...]:
    """What is seen, and at which sizes; after a failure, only a lack of pictures, since each picture tells its
    faults.
    """
    if not pictures:
        return ("No image was large enough to be looked at.",)
    if failed:
        return ()
    return (*(seen or ("No difference from PyTorch's images can be seen.",)), _sizes(pictures))


def _sizes(pictures: Sequence[Picture]) -> str:
    """Which part of the photographs is shown. Their own size is unknown where a bundle keeps the cases."""
    whole = ((picture, "{}x{} pixels".format(*picture.reference.shape[:2])) for picture in pictures)
    sizes = dict.fromkeys(picture.cut.words if picture.cut else size for picture, size in whole)
    told = f" (height x width): {'; '.join(sizes)}" if len(sizes) <= MOST_TOLD else ""
    return f"What is shown are photographs at the verified sizes, and of larger ones the middle{told}."


def _steps(bisection: Bisection | None) -> tuple[Table, ...]:
    """The tensors at which the error jumps, where a bisection found any."""
    rows = step_rows(bisection) if bisection else []
    if not rows:
        return ()
    lead = "The first tensors of each graph whose error is far larger than that of what they are computed from."
    cells = tuple((*map(Cell, row[:WORDS]), *map(_number, row[WORDS:])) for row in rows)
    return (Table("Where it goes wrong", lead, STEPS, cells),)


def _number(text: str) -> Cell:
    """A cell of ``STEPS``. One without a number sorts below all others."""
    return Cell(text, float(text.rstrip("%")) if text else -math.inf)


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
        f"Each row is one output at one size, compared with PyTorch; those that failed come first. {limits}",
        columns,
        tuple(map(_row, sorted(report.cases, key=lambda case: case.passed))),
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
