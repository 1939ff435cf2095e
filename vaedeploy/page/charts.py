"""Charts as data for the page's inline SVG: lines and ticks, in the user units of the SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from vaedeploy.quality.candidates import Candidate

WIDTH, HEIGHT = 340, 230
"""Size of a chart in user units."""

LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 44
"""Margins around the lines, in user units. They hold the labels."""


class Tick(msgspec.Struct, frozen=True):
    """A label of an axis. at: its x or y."""

    at: float
    text: str


class Dot(msgspec.Struct, frozen=True):
    """A point of a line. words: its value, as a sentence for the reader."""

    x: float
    y: float
    words: str


class Line(msgspec.Struct, frozen=True):
    """The line of one candidate, by its name."""

    name: str
    dots: tuple[Dot, ...]


class Chart(msgspec.Struct, frozen=True):
    """A line chart with one line per candidate.

    words: how to read it. across, up: labels of the horizontal and the vertical axis, with units. equal: the line
    (x1, y1, x2, y2) of a candidate that equals the reference.
    """

    title: str
    words: str
    across: str
    up: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    equal: tuple[float, float, float, float]
    lines: tuple[Line, ...]


def spectrum_chart(candidates: Sequence[Candidate]) -> Chart:
    """The chart of how much detail of each size the candidates have, octave by octave, the finest on the left."""
    bands = len(candidates[0].quality.detail.octaves)
    ratios = [max(ratio, 1e-3) for c in candidates for ratio in c.quality.detail.octaves]
    low = min(-1, math.floor(math.log2(min(ratios))))
    high = max(1, math.ceil(math.log2(max(ratios))))
    x = _scale(0, bands - 1, LEFT + 16, WIDTH - RIGHT - 16)
    y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    step = max(1, (high - low) // 4)
    marks = sorted({0, *range(0, high + 1, step), *range(0, low - 1, -step)})
    return Chart(
        "Detail by size",
        "How much detail of each size the candidate has, the finest on the left. Below 100 % it is blurred "
        "away; above 100 % there is more than there was.",
        "size of the detail in pixels: from this to twice this",
        "energy in % of the reference",
        tuple(Tick(x(n), str(2 * 2**n)) for n in range(bands)),
        tuple(Tick(y(n), f"{100 * 2**n:.3g}") for n in marks),
        (LEFT, y(0), WIDTH - RIGHT, y(0)),
        tuple(
            Line(
                c.name,
                tuple(
                    Dot(x(n), y(math.log2(max(ratio, 1e-3))), f"{2 * 2**n} to {4 * 2**n} pixels: {ratio:.0%}")
                    for n, ratio in enumerate(c.quality.detail.octaves)
                ),
            )
            for c in candidates
        ),
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
