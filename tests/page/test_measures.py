"""Metrics as people read them."""

from __future__ import annotations

import re

import msgspec
import numpy as np
import pytest
import skimage.data

from vaedeploy.page.measures import CHROMA, CONTRAST, DETAIL, MEASURES, Measure
from vaedeploy.quality import LIMITS, find_faults, measure_quality


def test_what_rounds_to_zero_has_no_minus() -> None:
    """One channel of one pixel is a level darker: by less than any number shows."""
    photo = np.full((256, 256, 3), 100, np.uint8)
    darker = photo.copy()
    darker[0, 0] = 99
    texts = {measure.column.title: measure.text(measure_quality(photo, darker)) for measure in MEASURES}
    assert texts["Brightness"] == "+0.00"
    assert not [text for text in texts.values() if text.startswith("-0.0")]


@pytest.mark.parametrize(
    ("measure", "group", "metric"), [(CHROMA, "color", "chroma_ratio"), (CONTRAST, "contrast", "global_ratio")]
)
def test_what_a_percentage_is_called_is_what_the_verdict_calls_it(measure: Measure, group: str, metric: str) -> None:
    photo = skimage.data.astronaut()[:64, :64]
    equal = measure_quality(photo, photo)

    def called(percent: float) -> str:
        metrics = msgspec.structs.replace(getattr(equal, group), **{metric: percent / 100})
        return ", ".join(fault.name for fault in find_faults(msgspec.structs.replace(equal, **{group: metrics})))

    told = re.fullmatch(r"Under (\d+) is called ([\w -]+), over (\d+) ([\w -]+)\.", measure.column.meaning)
    assert told is not None
    least, weak, most, strong = told.groups()
    assert [called(int(least) + change) for change in (-1, 1)] == [weak, ""]
    assert [called(int(most) + change) for change in (-1, 1)] == ["", strong]


def test_blur_and_sharpening_are_told_with_the_limits_of_the_verdict() -> None:
    bounds = [limit.bound for limit in LIMITS if limit.metric in ("detail.sharpness", "detail.sharpening")]
    told = re.findall(r"under (\d+) %|over (\d+) %", DETAIL.column.meaning)
    assert [int(under or over) for under, over in told] == [round(100 * bound) for bound in bounds]
