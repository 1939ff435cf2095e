"""Metrics as people read them."""

from __future__ import annotations

import numpy as np

from vaedeploy.page.measures import MEASURES
from vaedeploy.quality import measure_quality


def test_what_rounds_to_zero_has_no_minus() -> None:
    """One channel of one pixel is a level darker: by less than any number shows."""
    photo = np.full((256, 256, 3), 100, np.uint8)
    darker = photo.copy()
    darker[0, 0] = 99
    texts = {measure.column.title: measure.text(measure_quality(photo, darker)) for measure in MEASURES}
    assert texts["Brightness"] == "+0.00"
    assert not [text for text in texts.values() if text.startswith("-0.0")]
