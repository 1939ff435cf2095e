"""Quality -> findings: what is wrong with an image, in the words that a person would use, with the number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from vaedeploy.quality.measure import Quality

BROKEN = "broken"
"""Prefix of the names of faults beside which no other fault is worth reporting."""

EXPLAINED = {"patches of other tone": "seams"}
"""Name of a fault -> the fault that explains it: tiles whose borders show also differ in tone."""

TINTS = {20: "red", 74: "orange", 109: "yellow", 144: "green", 199: "cyan", 291: "blue", 310: "purple", 325: "magenta"}
"""Hue angle in a*b*, in degrees -> name of the tint: the hue of mid grey with 16 levels of that colour added."""


class QualityLimit(msgspec.Struct, frozen=True):
    """The bound of a metric, beyond which a person would call its value a fault, and the reason for it.

    name: name of the fault.
    metric: path of the metric in ``Quality``.
    bound: the largest allowed value where ``upper`` is true, else the smallest.
    neutral: the metric's value where there is no fault: 1 for a ratio, else 0.
    unit: unit of the value, as people read it; empty for ratios.
    words: a sentence. Here and in ``name``, ``{value}`` stands for the number and ``{tint}`` for the colour of a cast;
        ``{fine}`` is ``Detail.fine``, the one number of fine detail that people are told.
    reason: where the bound comes from.
    """

    name: str
    metric: str
    bound: float
    upper: bool
    neutral: float
    unit: str
    words: str
    reason: str

    def severity(self, value: float) -> float:
        """Distance of ``value`` from neutral over that of the bound, in the bound's direction. Over 1 is a fault.

        Ratios are compared by their logarithms: a half is as far from 1 as a double. Infinite where the bound equals
        neutral and ``value`` exceeds it.
        """
        if self.neutral:  # a ratio; at zero or below it has no logarithm, so it counts as 1e-9
            away, allowed = (math.log(max(v, 1e-9) / self.neutral) for v in (value, self.bound))
        else:
            away, allowed = value, self.bound
        if allowed == 0:
            return math.inf if away > 0 else 0.0
        return away / allowed


class Finding(msgspec.Struct, frozen=True):
    """A fault that a person can see.

    name: ``washed out``, ``over-saturated``, ``grey cast`` (or ``green cast``, ...), ``blurred``, ... as in ``LIMITS``.
    metric: path of the metric in ``Quality``. value, limit: in ``unit``. words: a sentence that gives the number.
    severity: distance of ``value`` from the metric's neutral value over that of ``limit``; over 1.
    """

    name: str
    metric: str
    value: float
    limit: float
    unit: str
    words: str
    severity: float


_JUST_SEEN = "2.3 units of CIELAB are just seen (Mahy et al. 1994)"

# fmt: off
LIMITS: tuple[QualityLimit, ...] = (
    QualityLimit(
        "broken (NaN)", "artifacts.nonfinite", 0, True, 0, "share of values",
        "{value:.2%} of the image's values are NaN or infinite: the computation overflowed.",
        "a single NaN or infinite value shows as a black hole and is always a fault",
    ),
    QualityLimit(
        "broken (constant)", "artifacts.constant", 0, True, 0, "",
        "The picture is one flat colour.",
        "a picture of one colour shows nothing of the reference",
    ),
    QualityLimit(
        "washed out", "color.chroma_ratio", 0.92, False, 1, "",
        "Colours are washed out: they have {value:.0%} of the strength that they should have.",
        f"at a chroma of 30, which is a vivid colour, 8 % is 2.4, and {_JUST_SEEN}",
    ),
    QualityLimit(
        "washed out", "contrast.global_ratio", 0.92, False, 1, "",
        "The picture is flat: it has {value:.0%} of the contrast that it should have.",
        f"with tones 30 of L* from their mean, 8 % is 2.4, and {_JUST_SEEN}",
    ),
    QualityLimit(
        "over-saturated", "color.chroma_ratio", 1.08, True, 1, "",
        "Colours are too strong: {value:.0%} of what they should be.",
        "as for washed out",
    ),
    QualityLimit(
        "over-saturated", "contrast.global_ratio", 1.08, True, 1, "",
        "Contrast is too strong: {value:.0%} of what it should be.",
        "as for washed out",
    ),
    QualityLimit(
        "{tint} cast", "color.cast", 2.3, True, 0, "a*b*",
        "There is a {tint} cast: grey has moved by {value:.1f} towards {tint} (2.3 is just seen).",
        _JUST_SEEN,
    ),
    QualityLimit(
        "grey cast", "contrast.mid_shift", 2.3, True, 0, "L*",
        "A grey veil lies over the picture: it is lighter by {value:.1f} of 100.",
        _JUST_SEEN,
    ),
    QualityLimit(
        "too dark", "contrast.mid_shift", -2.3, False, 0, "L*",
        "The picture is too dark: its lightness has moved by {value:.1f} of 100.",
        _JUST_SEEN,
    ),
    QualityLimit(
        "shifted hue", "color.hue_shift", 10, True, 0, "degrees",
        "Colours have turned by {value:.0f}° of hue, from red towards yellow and green.",
        "at a chroma of 30, 10° is 5 units, twice what is just seen; faults of another kind turned hues by up to 5°",
    ),
    QualityLimit(
        "shifted hue", "color.hue_shift", -10, False, 0, "degrees",
        "Colours have turned by {value:.0f}° of hue, from red towards magenta and blue.",
        "as for the other direction",
    ),
    QualityLimit(
        "blurred", "detail.sharpness", 0.7, False, 1, "",
        "The image is blurred: it has {fine:.0%} of the fine detail.",
        "of the finest octave's energy a Gaussian of 0.5 pixels takes 40 % or more, and one of 0.3 no more than 3 %",
    ),
    QualityLimit(
        "over-sharpened", "detail.sharpening", 1.15, True, 1, "",
        "The image is over-sharpened: the most amplified octave of detail has {value:.0%} of its strength.",
        "an unsharp mask with a radius of 1 pixel and an amount of 0.2 reaches this bound",
    ),
    QualityLimit(
        "grid", "artifacts.grid", 0.3, True, 0, "levels",
        "A regular grid lies over the picture, {value:.1f} levels of 255 strong.",
        "lines of 2 levels every 8 pixels have twice that; rounding and lost levels have no more than a third of it",
    ),
    QualityLimit(
        "seams", "artifacts.seams", 0.75, True, 0, "levels",
        "Tiles show: the picture jumps by {value:.1f} levels of 255 at their borders.",
        "a long straight step of one level is the least that bytes can show, and is seen in a smooth area",
    ),
    QualityLimit(
        "patches of other tone", "tone.spread", 1.0, True, 0, "levels",
        "There are patches of other tone: places differ by {value:.1f} levels of 255 more than they should.",
        "one level is the least that bytes can show; blur, JPEG and other VAEs stay under it, and tiles reach 2.5",
    ),
    QualityLimit(
        "banding", "artifacts.banding", 0.25, True, 0, "share of levels",
        "Smooth areas show bands: {value:.0%} of their tones are missing.",
        "a ramp that keeps every second level has lost a half; grain hides some of that in photographs",
    ),
    QualityLimit(
        "fried pixels", "artifacts.fried", 5, True, 0, "per million pixels",
        "Single pixels are fried: {value:.0f} in a million stand out from all around them.",
        "one fried pixel in an image of 512x512 is 3.8 per million, and may be a glint",
    ),
    QualityLimit(
        "wrong opacity", "opacity.mean_abs", 6, True, 0, "levels",
        "Opacity is wrong: it is {value:.0f} levels of 255 off on average.",
        f"of black in front of white, 6 levels about half opacity are 2.3 of L*, and {_JUST_SEEN}",
    ),
)
# fmt: on


def bound_of(metric: str, *, upper: bool) -> float:
    """The bound of a metric in ``LIMITS``: the largest value that is no fault if ``upper`` is true, else the least."""
    return next(limit.bound for limit in LIMITS if (limit.metric, limit.upper) == (metric, upper))


def find_faults(quality: Quality, limits: Sequence[QualityLimit] = LIMITS) -> tuple[Finding, ...]:
    """The faults that a person would see, worst first; empty where there are none.

    A fault that shows in several metrics is reported once, by the worst of them, and one that another explains is left
    out (see ``EXPLAINED``). For a broken image nothing else is reported.
    """
    findings = []
    for limit in limits:
        group, name = limit.metric.split(".")
        metrics = getattr(quality, group)
        value = None if metrics is None else getattr(metrics, name)  # RGB images have no opacity
        if value is not None and (severity := limit.severity(float(value))) > 1:
            findings.append(_make_finding(limit, float(value), severity, quality))
    worst: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda finding: finding.severity, reverse=True):
        worst.setdefault(finding.name, finding)
    for fault, cause in EXPLAINED.items():
        if cause in worst:
            worst.pop(fault, None)
    broken = [finding for finding in worst.values() if finding.name.startswith(BROKEN)]
    return tuple(broken[:1] or worst.values())


def _make_finding(limit: QualityLimit, value: float, severity: float, quality: Quality) -> Finding:
    color, fine = quality.color, quality.detail.fine
    hue = math.degrees(math.atan2(color.bias_b, color.bias_a))
    tint = TINTS[min(TINTS, key=lambda angle: abs((hue - angle + 180) % 360 - 180))]
    name, words = (text.format(value=value, tint=tint, fine=fine) for text in (limit.name, limit.words))
    return Finding(name, limit.metric, value, limit.bound, limit.unit, words, severity)
