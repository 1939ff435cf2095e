"""Report -> Document: what the page of ``vaedeploy verify`` shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from vaedeploy.report.document import Cell, Column, Document, Picture, Table, Tone
from vaedeploy.report.looks import Looks
from vaedeploy.report.write import write_report
from vaedeploy.verify import Case, Report


def write_verification(bundle: Path, report: Report, looks: Looks, folder: str | Path) -> None:
    """Write the page of a bundle's verification into ``folder``, as ``write_report`` does; its PageError holds the
    report.
    """
    write_report(verification_document(bundle.resolve().name, report, looks.pictures), folder, report)


def verification_document(name: str, report: Report, pictures: Sequence[Picture]) -> Document:
    """name: the bundle's, for the title."""
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
    return list(dict.fromkeys(words for case in report.cases for words in case.findings or ()))


def _verdict(report: Report) -> str:
    failed = sum(not case.passed for case in report.cases)
    if failed:
        return f"Failed: {failed} of {len(report.cases)} cases are further from PyTorch than allowed"
    if _seen(report):
        return f"Verified: all {len(report.cases)} cases are within their limits, but something can be seen"
    return f"Verified: all {len(report.cases)} cases are as near to PyTorch as they must be"


def _tone(report: Report) -> Tone:
    if not report.passed:
        return "bad"
    return "mixed" if _seen(report) else "good"


def _sentences(report: Report, pictures: Sequence[Picture]) -> tuple[str, ...]:
    missed = [
        f"{case.form} {case.part}, {case.batch}x{case.height}x{case.width}, {case.output}: {failure}."
        for case in report.cases
        for failure in case.failures
    ]
    if not pictures:
        return (*missed, "No picture was large enough to be looked at.")
    return (*missed, *(_seen(report) or ["Nothing is seen beside PyTorch's own pictures."]))


def _cases(report: Report) -> Table:
    columns = (
        Column("Graph"),
        Column("Part"),
        Column("Output"),
        Column("Size", "items x height x width"),
        Column("Off by, relative", "L2 norms", "Length of the error over length of what PyTorch gives: 0 is equal."),
        Column("Off by at most", "output's units", "A picture spans 2, from -1 to 1."),
        Column("Likeness", "dB PSNR", "Of 8-bit pixels. From 40 on no difference is seen."),
        Column("Pixels that differ", "% of values", "Of 8-bit values, by one level of 255 or more."),
        Column("Verdict"),
    )
    return Table(
        "All cases",
        "Each row is one output at one size, compared with PyTorch.",
        columns,
        tuple(_row(case) for case in report.cases),
    )


def _row(case: Case) -> tuple[Cell, ...]:
    pixels = case.pixels_off is not None
    psnr = "" if not pixels else "identical" if case.psnr is None else f"{case.psnr:.1f}"
    return (
        Cell(case.form),
        Cell(case.part),
        Cell(case.output),
        Cell(f"{case.batch}x{case.height}x{case.width}", case.batch * case.height * case.width),
        Cell(f"{case.rel_l2:.1e}", case.rel_l2),
        Cell(f"{case.max_abs:.1e}", case.max_abs),
        Cell(psnr, (math.inf if case.psnr is None else case.psnr) if pixels else -math.inf),
        Cell("" if case.pixels_off is None else f"{case.pixels_off:.2%}", case.pixels_off),
        Cell("passed" if case.passed else "FAILED"),
    )
