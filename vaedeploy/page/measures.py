"""The metrics as people read them: a title in words, the unit, and the meaning of the number."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from vaedeploy.images.opacity import has_opacity
from vaedeploy.page.document import Cell, Column, Table
from vaedeploy.quality import Quality
from vaedeploy.quality.candidates import Candidate, Picture
from vaedeploy.quality.verdicts import bound_of


class Measure(msgspec.Struct, frozen=True):
    """A metric as people read it.

    value: reads the number from a ``Quality``; None where the image has no such number. form: the number's format.
    absent: the text for None.
    """

    column: Column
    value: Callable[[Quality], float | None]
    form: str
    absent: str = "not measured"

    def text(self, quality: Quality) -> str:
        """The number, with as many digits as its unit needs, without the unit; or ``absent``."""
        value = self.value(quality)
        return self.absent if value is None else self.form.format(value)

    def cell(self, quality: Quality) -> Cell:
        """The cell of a table. None, as the PSNR of identical images is, sorts as infinity, above every number."""
        value = self.value(quality)
        return Cell(self.text(quality), float("inf") if value is None else value)


def _under_and_over(metric: str, under: str, over: str) -> str:
    """Where a percentage becomes a fault: ``Under 92 is called flat, over 108 harsh.``"""
    least, most = (100 * bound_of(metric, upper=upper) for upper in (False, True))
    return f"Under {least:.0f} is called {under}, over {most:.0f} {over}."


PSNR = Measure(
    Column("PSNR", "dB", "Higher is closer. From about 40 on hardly any difference is seen."),
    lambda q: q.error.psnr,
    "{:.1f}",
    "identical",
)

COLOR = Measure(
    Column(
        "Colour difference",
        "CIEDE2000, mean",
        "0 is equal, and lower is closer. No fault is called by it: weak colours and casts are measured by themselves.",
    ),
    lambda q: q.color.ciede2000_mean,
    "{:.2f}",
)

CHROMA = Measure(
    Column("Colour strength", "%, 100 is equal", _under_and_over("color.chroma_ratio", "washed out", "over-saturated")),
    lambda q: 100 * q.color.chroma_ratio,
    "{:.0f}",
)

CONTRAST = Measure(
    Column("Contrast", "%, 100 is equal", _under_and_over("contrast.global_ratio", "washed out", "over-saturated")),
    lambda q: 100 * q.contrast.global_ratio,
    "{:.0f}",
)

DETAIL = Measure(
    Column(
        "Fine detail",
        "%, 100 is equal",
        "How strong details of 2 to 16 pixels in size are, on average over their sizes. A picture is called blurred "
        f"where the weakest size has under {100 * bound_of('detail.sharpness', upper=False):.0f} % of its energy, and "
        f"over-sharpened where the strongest has over {100 * bound_of('detail.sharpening', upper=True):.0f} % of its "
        "strength.",
    ),
    lambda q: 100 * q.detail.fine,
    "{:.0f}",
)

MEASURES = (
    PSNR,
    Measure(
        Column("Structure", "SSIM, 1 is equal", "Whether edges and textures are where they were."),
        lambda q: q.error.ssim,
        "{:.3f}",
    ),
    COLOR,
    CHROMA,
    CONTRAST,
    Measure(
        Column(
            "Brightness",
            "L*, 0 is equal",
            "Of 100 between black and white. Over 0 is lighter. Where mid grey moves as far, over "
            f"{bound_of('contrast.mid_shift', upper=True)} is called a grey cast, and under "
            f"{bound_of('contrast.mid_shift', upper=False)} too dark.",
        ),
        lambda q: q.color.bias_l,
        "{:+z.2f}",
    ),
    DETAIL,
)
"""The columns of the table: one for each property that a person would notice."""

FURTHER = (
    Measure(
        Column("Structure at five sizes", "MS-SSIM, 1 is equal"),
        lambda q: q.error.ms_ssim,
        "{:.3f}",
        "too small for it",
    ),
    Measure(
        Column("Pixels off by more than 1 level", "% of pixels"), lambda q: 100 * q.error.off_by_more_than_1, "{:.2f}"
    ),
    Measure(
        Column("Pixels off by more than 2 levels", "% of pixels"), lambda q: 100 * q.error.off_by_more_than_2, "{:.2f}"
    ),
    Measure(Column("Largest colour difference", "CIEDE2000"), lambda q: q.color.ciede2000_max, "{:.1f}"),
    Measure(Column("Shift from green to red", "a*, 0 is equal"), lambda q: q.color.bias_a, "{:+z.2f}"),
    Measure(Column("Shift from blue to yellow", "b*, 0 is equal"), lambda q: q.color.bias_b, "{:+z.2f}"),
    Measure(Column("Turn of hue", "degrees, 0 is equal"), lambda q: q.color.hue_shift, "{:+z.1f}"),
    Measure(Column("White is lighter by", "L*, 0 is equal"), lambda q: q.color.white_shift, "{:+z.2f}"),
    Measure(Column("Black is lighter by", "L*, 0 is equal"), lambda q: q.color.black_shift, "{:+z.2f}"),
    Measure(Column("Local contrast", "%, 100 is equal"), lambda q: 100 * q.contrast.local_ratio, "{:.0f}"),
    Measure(Column("Grid pattern", "levels of 255"), lambda q: q.artifacts.grid, "{:.2f}"),
    Measure(Column("Seams of tiles", "levels of 255"), lambda q: q.artifacts.seams, "{:.2f}", "no tiles"),
    Measure(Column("Spread of tone over places", "levels of 255"), lambda q: q.tone.spread, "{:.2f}"),
    Measure(Column("Banding", "% of levels lost"), lambda q: 100 * q.artifacts.banding, "{:.1f}"),
    Measure(Column("Fried pixels", "per million"), lambda q: q.artifacts.fried, "{:.0f}"),
    Measure(Column("NaN or infinite", "% of values"), lambda q: 100 * q.artifacts.nonfinite, "{:.2f}"),
)
"""The other metrics, which are shown with each image."""


OPACITY = (
    Measure(
        Column(
            "Opacity",
            "levels of 255 off, mean",
            f"0 is equal. Over {bound_of('opacity.mean_abs', upper=True)} is called wrong. All other numbers are of "
            "the picture in front of white.",
        ),
        lambda q: q.opacity.mean_abs if q.opacity else None,
        "{:.2f}",
        "no opacity",
    ),
    Measure(
        Column("More opaque by", "levels of 255, 0 is equal"),
        lambda q: q.opacity.bias if q.opacity else None,
        "{:+z.2f}",
        "no opacity",
    ),
)
"""The metrics of images with opacity. The first has a column of the table."""


LPIPS = Measure(
    Column("LPIPS", "AlexNet, 0 is equal", "How different AlexNet sees the two. Lower is closer (Zhang et al. 2018)."),
    lambda q: q.perceptual.lpips if q.perceptual else None,
    "{:z.3f}",
)

DISTS = Measure(
    Column("DISTS", "VGG16, 0 is equal", "The same of VGG16, which forgives moved texture (Ding et al. 2020)."),
    lambda q: q.perceptual.dists if q.perceptual else None,
    "{:z.3f}",
)


def perceptual_measures(pictures: tuple[Picture, ...]) -> tuple[Measure, ...]:
    """LPIPS and DISTS, if they were measured for any image of a page."""
    found = [candidate.quality for picture in pictures for candidate in picture.candidates]
    return tuple(m for m in (LPIPS, DISTS) if any(m.value(quality) is not None for quality in found))


def have_opacity(pictures: tuple[Picture, ...]) -> bool:
    """Whether any image of a page has opacity."""
    return any(has_opacity(picture.reference) for picture in pictures)


def metric_table(pictures: tuple[Picture, ...]) -> Table:
    """The table with a row for each candidate of each image."""
    measures = (*MEASURES, *perceptual_measures(pictures), *(OPACITY[:1] if have_opacity(pictures) else ()))
    return Table(
        "Picture by picture",
        "Each row is one picture. Choose a column's title to sort by it.",
        (Column("Picture"), Column("Made by"), *(measure.column for measure in measures), Column("What is seen")),
        tuple(_row(picture, candidate, measures) for picture in pictures for candidate in picture.candidates),
    )


def _row(picture: Picture, candidate: Candidate, measures: tuple[Measure, ...]) -> tuple[Cell, ...]:
    seen = ", ".join(finding.name for finding in candidate.findings) or "nothing"
    return (
        Cell(picture.name),
        Cell(candidate.name),
        *(measure.cell(candidate.quality) for measure in measures),
        Cell(seen),
    )
