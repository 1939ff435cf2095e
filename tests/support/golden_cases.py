"""Golden cases of a tiny VAE with a scale and a shift for each channel."""

from __future__ import annotations

from vaedeploy.bundle.golden import GoldenCase
from vaedeploy.images.photos import load_photos
from vaedeploy.testing.tiny import tiny_reference
from vaedeploy.values.reference import Reference
from vaedeploy.verify.reference import compute_golden
from vaedeploy.verify.shapes import Shape

SHAPES = (Shape("odd", 2, 20, 12, True), Shape("square", 1, 16, 16, False))
SCALE, SHIFT = (0.3, 2.0, -1.5, 0.01), (0.5, 0.0, -3.0, 10.0)


def scaled_reference() -> Reference:
    """The VAE."""
    return tiny_reference(scale=SCALE, shift=SHIFT)


def golden_cases() -> tuple[GoldenCase, ...]:
    """What it makes of scikit-image's photographs at ``SHAPES``, in float64."""
    return compute_golden(scaled_reference(), load_photos(), SHAPES)
