"""Two images -> metrics -> findings: whether a VAE's image looks right beside its reference.

    >>> findings = find_faults(measure_quality(reference, candidate))

``measure_quality`` computes the metrics. ``find_faults`` compares them with the bounds in ``LIMITS``, which are data.

May import ``images`` and what is below it; knows nothing of the other stages.
"""

from __future__ import annotations

from vaedeploy.quality.artifacts import Artifacts
from vaedeploy.quality.color import Color
from vaedeploy.quality.contrast import Contrast
from vaedeploy.quality.detail import Detail
from vaedeploy.quality.likeness import Likeness
from vaedeploy.quality.measure import Quality, measure_batch, measure_quality
from vaedeploy.quality.opacity import Opacity
from vaedeploy.quality.perceptual import Perceptual, PerceptualMetrics, load_perceptual
from vaedeploy.quality.tone import Tone
from vaedeploy.quality.verdicts import LIMITS, Finding, QualityLimit, find_faults

__all__ = [
    "LIMITS",
    "Artifacts",
    "Color",
    "Contrast",
    "Detail",
    "Finding",
    "Likeness",
    "Opacity",
    "Perceptual",
    "PerceptualMetrics",
    "Quality",
    "QualityLimit",
    "Tone",
    "find_faults",
    "load_perceptual",
    "measure_batch",
    "measure_quality",
]
