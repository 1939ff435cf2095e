"""Charts as data for the page's inline SVG: lines and ticks, in the user units of the SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from vaedeploy.quality.candidates import Candidate
from vaedeploy.quality.detail import FINE

WIDTH, HEIGHT = 340, 230
"""Size of a chart in user units."""

LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 44
"""Margins around the lines, in user units. They hold the labels."""

STEP, MOST_STEPS = 25, 6
"""The distance between the labels of detail, in %; a multiple of it where there would be too many labels."""


class Tick(msgspec.Struct, frozen=True):
    """A label of an axis. at: its x or y."""

    at: float
    text: str


class Dot(msgspec.Struct, frozen=True):
    """A point of a line. words: its value, as a sentence for the reader."""

    x: float
    y: float
    words: str


class Mark(msgspec.Struct, frozen=True):
    """A labelled stretch of the horizontal axis, from one x to another."""

    start: float
    end: float
    text: str


class Line(msgspec.Struct, frozen=True):
    """The line of one candidate, by its name. figure: its summary in the legend."""

    name: str
    dots: tuple[Dot, ...]
    figure: str = ""


class Chart(msgspec.Struct, frozen=True):
    """A line chart with one line per candidate.

    words: how to read it. across, up: labels of the horizontal and the vertical axis, with units. equal: the line
    (x1, y1, x2, y2) of a candidate that equals the reference. mark: a stretch that stands out; None where none does.
    """

    title: str
    words: str
    across: str
    up: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    equal: tuple[float, float, float, float]
    lines: tuple[Line, ...]
    mark: Mark | None = None


def spectrum_chart(candidates: Sequence[Candidate]) -> Chart:
    """The chart of the strength of the candidates' detail, octave by octave, the finest on the left.

    The octaves whose mean is ``Detail.fine``, the one number for fine detail, are marked.
    """
    gains = [candidate.quality.detail.gains for candidate in candidates]
    bands = len(gains[0])
    high = max(125, STEP * math.ceil(100 * max(map(max, gains)) / STEP))
    x = _scale(0, bands - 1, LEFT + 16, WIDTH - RIGHT - 16)
    y = _scale(0, high, HEIGHT - BOTTOM, TOP)
    half = (x(1) - x(0)) / 2
    return Chart(
        "Detail by size",
        "How strong the detail of each size is, the finest on the left. Under 100 % it is weaker, over 100 % "
        "stronger. The figure for fine detail is the mean over the marked sizes.",
        "size of the detail in pixels: from this to twice this",
        "strength in % of the reference",
        tuple(Tick(x(n), str(2 * 2**n)) for n in range(bands)),
        tuple(Tick(y(level), str(level)) for level in range(0, high + 1, STEP * math.ceil(high / STEP / MOST_STEPS))),
        (LEFT, y(100), WIDTH - RIGHT, y(100)),
        tuple(
            Line(
                candidate.name,
                tuple(
                    # The gain is negative where the candidate shows the opposite.
                    Dot(x(n), y(100 * max(gain, 0.0)), f"{2 * 2**n} to {4 * 2**n} pixels: {gain:.0%}")
                    for n, gain in enumerate(candidate.quality.detail.gains)
                ),
                f"{candidate.quality.detail.fine:.0%} of the fine detail",
            )
            for candidate in candidates
        ),
        Mark(LEFT, round(x(min(FINE, bands) - 1) + half, 1), "fine detail"),
    )


def tone_chart(candidates: Sequence[Candidate]) -> Chart:
    """The chart of the level to which the candidates map each level of the reference."""
    x, y = _scale(0, 255, LEFT, WIDTH - RIGHT), _scale(0, 255, HEIGHT - BOTTOM, TOP)
    levels = (0, 64, 128, 192, 255)
    return Chart(
        "Tones",
        "The tone curve, black on the left. A line on the dashed diagonal means no change; a "
        "flatter line means less contrast.",
        "level in the reference (0 black, 255 white)",
        "level in the candidate",
        tuple(Tick(x(level), str(level)) for level in levels),
        tuple(Tick(y(level), str(level)) for level in levels),
        (x(0), y(0), x(255), y(255)),
        tuple(
            Line(
                c.name,
                tuple(Dot(x(a), y(b), f"level {a:.0f} becomes {b:.1f}") for a, b in c.quality.contrast.tone_curve),
            )
            for c in candidates
        ),
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map from [low, high] to user units, start to end, rounded to a tenth."""
    return lambda value: round(start + (value - low) / max(high - low, 1) * (end - start), 1)
