"""Document -> page: one self-contained HTML file.

Where that file cannot hold every image at full size, the full-size images are written beside it.
"""

from __future__ import annotations

import logging
import math
import re
from contextlib import AbstractContextManager, ExitStack
from operator import itemgetter
from pathlib import Path

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from vaedeploy.bundle.stored import refuse_in_bundle
from vaedeploy.errors import OutputError, PageError
from vaedeploy.images.cut import Cut
from vaedeploy.images.files import write_image
from vaedeploy.page.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, spectrum_chart, tone_chart
from vaedeploy.page.document import Document
from vaedeploy.page.images import HEAT, Area, at_most, error_levels, heat_map, lossless, worst_area
from vaedeploy.page.measures import FURTHER, MEASURES, OPACITY, have_opacity, metric_table, perceptual_measures
from vaedeploy.quality import Finding, Quality
from vaedeploy.quality.candidates import Candidate, Picture, Pixels
from vaedeploy.system.atomic import check_place, transient_folder, write_file
from vaedeploy.system.oserrors import told_as
from vaedeploy.system.places import is_folder
from vaedeploy.system.text import encodable
from vaedeploy.version import __version__

log = logging.getLogger(__name__)

NAME = "index.html"

MARK = b'<meta name="generator" content="vaedeploy">'
"""Which pages may be replaced: those that have this near their beginning."""

MOST_BYTES = 5_000_000
"""The largest page, in bytes: it fits into an e-mail or a ticket."""

LAYOUTS = ((1024, 24), (768, 24), (512, 24), (384, 24), (256, 24), (256, 12), (256, 6))
"""Layouts, each (longer side of an image in the page, in pixels; number of images shown). The first that fits is taken.

A picture that was cut for a comparison has at most 1024, so it can be viewed pixel by pixel. Images that are not shown
are linked.
"""

MAP_SIDE = 384
"""The most pixels that the longer side of a map of the error has."""

STRIP_SIDE = 256
"""Longer side of a strip's images, in pixels."""

LONGEST_SLUG = 60
"""The most characters that a picture's or a VAE's name has in the name of a file, which may have 255 on most disks."""


class _Layer(msgspec.Struct, frozen=True):
    """One of the images under a slider. file: path from the page to the full-size image, where one is written."""

    name: str
    uri: str
    file: str


class _Closer(msgspec.Struct, frozen=True):
    """A closer look at a candidate: its worst area beside the reference's, and its heat map.

    largest: its largest error, in 8-bit levels.
    """

    name: str
    quality: Quality
    findings: tuple[Finding, ...]
    largest: int
    area: Area
    reference_crop: str
    crop: str
    heat: str


class _Scene(msgspec.Struct, frozen=True):
    """A ``Picture`` with everything that the template shows of it. opens: the layers that are left and right at first.

    cut: the part of a picture that it is; None for a whole picture.
    """

    name: str
    width: int
    height: int
    layers: tuple[_Layer, ...]
    opens: tuple[int, int]
    candidates: tuple[_Closer, ...]
    charts: tuple[Chart, ...]
    cut: Cut | None


def check_folder(folder: str | Path) -> None:
    """Raise OutputError if ``write_page`` could not write into ``folder``, to be called before the work for a page.

    It tries to make the folder and to write into it, and leaves nothing behind. A page of another program's is not
    replaced, no folder gets the name of a page, and a bundle gets no page, which would damage it.
    """
    folder = Path(folder)
    if folder.suffix in {".html", ".htm"} and not is_folder(folder):
        raise OutputError(f"{folder} is the name of a page, and a folder is needed, in which {NAME} is written")
    refuse_in_bundle(folder)
    if _is_of_another(folder / NAME):
        raise OutputError(f"{folder} has an {NAME} that vaedeploy did not write. Choose another folder")
    with ExitStack() as stack:
        with _naming_page(folder):
            stack.enter_context(transient_folder(folder))
        check_place(folder / NAME)


def write_page(document: Document, folder: str | Path, result: object = None) -> Path:
    """Write ``index.html`` into ``folder``, which is created if it is missing. Returns the path of the file.

    The page stays under 5 MB if it can; otherwise a warning is logged. If it cannot hold every image at full size, all
    images are also written as PNG into ``pictures`` beside it, and linked; if there are very many, it shows those
    furthest from their reference. Raises PageError, which carries ``result``, where ``folder`` cannot be written to.
    """
    folder = Path(folder)
    for side, shown in LAYOUTS:
        page = _render(document, side, shown)
        if len(page) <= MOST_BYTES:
            break
    else:
        log.warning(
            "the page in %s has %.1f MB, more than the %.0f that it should have",
            folder,
            *(n / 1e6 for n in (len(page), MOST_BYTES)),
        )
    try:
        _make_folder(folder)
        if _has_files(document, side, shown):
            _make_folder(folder / "pictures")
            for number, picture in enumerate(document.pictures, 1):
                for _, pixels, file in _layers(document, number, picture):
                    write_image(folder / file, pixels)
        write_file(folder / NAME, page)
    except OutputError as error:
        raise PageError(str(error), result) from error
    return folder / NAME


def _render(document: Document, side: int, shown: int) -> bytes:
    environment = Environment(
        loader=PackageLoader("vaedeploy", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pieces"] = _pieces
    own = (metric_table(document.pictures),) if document.pictures else ()
    answers = bool(document.answer or document.tables)  # those that the document has
    numbered = list(enumerate(document.pictures, 1))
    opacity = have_opacity(document.pictures)
    furthest = sorted(numbered, key=lambda pair: _likeness(pair[1]))[:shown]
    page = environment.get_template("page.html").render(
        document=document,
        answer=document.answer if answers else own,
        tables=(*document.tables, *own) if answers else (),
        strips=[
            (s.title, s.words, [(name, at_most(p, STRIP_SIDE)) for name, p in s.pictures]) for s in document.strips
        ],
        pictures=[_scene(document, number, picture, side) for number, picture in sorted(furthest, key=itemgetter(0))],
        others=[(p, _layers(document, n, p)) for n, p in numbered if (n, p) not in furthest],
        files=_has_files(document, side, shown),
        measures=(*MEASURES, *perceptual_measures(document.pictures), *FURTHER, *(OPACITY if opacity else ())),
        opacity=opacity,
        heat=HEAT,
        chart_width=WIDTH,
        chart_height=HEIGHT,
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
        version=__version__,
    )
    return encodable(page.strip()).encode()


def _pieces(text: str) -> list[str]:
    """The text in pieces between which a line may break, so that ``decoder.up_blocks.3`` breaks at a point."""
    return re.split(r"(?<=[a-z]\.)(?=\w)", text)


def _likeness(picture: Picture) -> float:
    """PSNR in dB of the worst candidate; infinite where every candidate equals the reference."""
    return min(math.inf if c.quality.error.psnr is None else c.quality.error.psnr for c in picture.candidates)


def _scene(document: Document, number: int, picture: Picture, side: int) -> _Scene:
    height, width, _ = picture.reference.shape
    layers = tuple(_Layer(name, at_most(p, side), file) for name, p, file in _layers(document, number, picture))
    names = [layer.name for layer in layers]
    left, right = document.opens or names[:2]
    opens = (names.index(left), names.index(right)) if {left, right} <= set(names) else (0, 1)
    return _Scene(
        picture.name,
        width,
        height,
        layers,
        opens,
        tuple(_closer(picture, candidate, min(side // 2, MAP_SIDE)) for candidate in picture.candidates),
        (spectrum_chart(picture.candidates), tone_chart(picture.candidates)),
        picture.cut,
    )


def _closer(picture: Picture, candidate: Candidate, side: int) -> _Closer:
    error = error_levels(picture.reference, candidate.pixels)
    area = worst_area(error)
    return _Closer(
        candidate.name,
        candidate.quality,
        candidate.findings,
        int(error.max()),
        area,
        lossless(area.of(picture.reference)),
        lossless(area.of(candidate.pixels)),
        heat_map(error, side),
    )


def _has_files(document: Document, side: int, shown: int) -> bool:
    """Whether the page leaves out or shrinks an image, so that full-size ones are written beside it."""
    return len(document.pictures) > shown or any(max(picture.reference.shape) > side for picture in document.pictures)


def _layers(document: Document, number: int, picture: Picture) -> list[tuple[str, Pixels, str]]:
    """(name, pixels, path of the file from the page) of the reference and of every candidate."""
    named = [(document.reference, picture.reference), *((c.name, c.pixels) for c in picture.candidates)]
    return [
        (name, pixels, f"pictures/{number:03}-{index}-{_slug(picture.name)}-{_slug(name)}.png")
        for index, (name, pixels) in enumerate(named)
    ]


def _slug(name: str) -> str:
    """What a file's name says of a picture or a VAE: of a long name only the beginning, so that two fit into one."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:LONGEST_SLUG].strip("-")


def _is_of_another(page: Path) -> bool:
    """Whether there is a page that vaedeploy did not write."""
    try:
        with page.open("rb") as file:
            return MARK not in file.read(1000)
    except OSError:
        return False  # there is none, or ``check_place`` says what is wrong with it


def _make_folder(folder: Path) -> None:
    with _naming_page(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _naming_page(folder: Path) -> AbstractContextManager[None]:
    """Context in which an error of the operating system becomes one that names the page's folder."""
    return told_as(f"cannot write a report to {folder}")
