"""Document -> page: one HTML file that needs nothing beside it; where pictures are too many for it, the full ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from vaedeploy import __version__
from vaedeploy.atomic import advice, reason, write_file
from vaedeploy.errors import OutputError
from vaedeploy.files import write_image
from vaedeploy.report.charts import HEIGHT, WIDTH, Chart, spectrum_chart, tone_chart
from vaedeploy.report.document import Candidate, Document, Picture, Pixels
from vaedeploy.report.images import HEAT, Area, at_most, error_levels, heat_map, lossless, worst_area
from vaedeploy.report.measures import FURTHER, MEASURES, metric_table

NAME = "index.html"

MOST_BYTES = 5_000_000
"""Of a page: what a mail or a ticket takes."""

SIDES = (768, 512, 384, 256, 160)
"""Pixels of the longer side of a picture in the page: the first with which the page is small enough. 768 is as wide as
the page shows one.
"""

STRIP_SIDE = 256
"""Pixels of the longer side of a strip's pictures."""


class _Layer(msgspec.Struct, frozen=True):
    """One of the pictures under a slider. file: where the full one lies, if the page's is shrunk."""

    name: str
    uri: str
    file: str


class _Closer(msgspec.Struct, frozen=True):
    """A candidate's worst area and heat map."""

    name: str
    quality: Any
    findings: Any
    area: Area
    reference_crop: str
    crop: str
    heat: str


class _Scene(msgspec.Struct, frozen=True):
    name: str
    width: int
    height: int
    layers: tuple[_Layer, ...]
    candidates: tuple[_Closer, ...]
    charts: tuple[Chart, ...]


def write_report(document: Document, folder: str | Path) -> Path:
    """Write ``index.html`` into ``folder``, which is made where it is not there; returns its path.

    Where pictures have to be shrunk for the page to stay under 5 MB, all of them are also written in full, as PNG, into
    ``pictures`` beside it. Raises OutputError where ``folder`` cannot be written to.
    """
    folder = Path(folder)
    sides = iter(SIDES)
    side = next(sides)
    closers = [[_closer(picture, candidate) for candidate in picture.candidates] for picture in document.pictures]
    page = _render(document, closers, side)
    for side in sides:
        if len(page) <= MOST_BYTES:
            break
        page = _render(document, closers, side)
    _make_folder(folder)
    if _is_shrunk(document, side):
        _make_folder(folder / "pictures")
        for number, picture in enumerate(document.pictures, 1):
            for _, pixels, file in _layers(document, number, picture):
                write_image(folder / file, pixels)
    write_file(folder / NAME, page)
    return folder / NAME


def _render(document: Document, closers: list[list[_Closer]], side: int) -> bytes:
    environment = Environment(
        loader=PackageLoader("vaedeploy", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scenes = [
        _Scene(
            picture.name,
            picture.reference.shape[1],
            picture.reference.shape[0],
            tuple(
                _Layer(name, at_most(pixels, side), file) for name, pixels, file in _layers(document, number, picture)
            ),
            tuple(closer),
            (spectrum_chart(picture.candidates), tone_chart(picture.candidates)),
        )
        for number, (picture, closer) in enumerate(zip(document.pictures, closers, strict=True), 1)
    ]
    strips = [
        {"title": s.title, "words": s.words, "pictures": [(name, at_most(p, STRIP_SIDE)) for name, p in s.pictures]}
        for s in document.strips
    ]
    page = environment.get_template("page.html").render(
        document=document,
        tables=(*document.tables, metric_table(document.pictures)),
        strips=strips,
        pictures=scenes,
        shrunk=_is_shrunk(document, side),
        measures=(*MEASURES, *FURTHER),
        heat=HEAT,
        chart_width=WIDTH,
        chart_height=HEIGHT,
        version=__version__,
    )
    return page.strip().encode()


def _closer(picture: Picture, candidate: Candidate) -> _Closer:
    error = error_levels(picture.reference, candidate.pixels)
    area = worst_area(error)
    return _Closer(
        candidate.name,
        candidate.quality,
        candidate.findings,
        area,
        lossless(area.of(picture.reference)),
        lossless(area.of(candidate.pixels)),
        heat_map(error),
    )


def _layers(document: Document, number: int, picture: Picture) -> list[tuple[str, Pixels, str]]:
    """Name, pixels and file (from the page) of the reference and of all candidates."""
    named = [(document.reference, picture.reference), *((c.name, c.pixels) for c in picture.candidates)]
    return [
        (name, pixels, f"pictures/{number:03}-{index}-{_slug(picture.name)}-{_slug(name)}.png")
        for index, (name, pixels) in enumerate(named)
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")


def _is_shrunk(document: Document, side: int) -> bool:
    return any(max(picture.reference.shape) > side for picture in document.pictures)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write a report to {folder}: {reason(error)}. {advice(error)}") from error
