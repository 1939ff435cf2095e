"""Detectors on photographs with a fault put in at graded strength, and without: the right word, and no false alarm."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faults
import msgspec
import numpy as np
import pytest
from PIL import Image

from vaedeploy.errors import ImageError, InputError
from vaedeploy.files import read_image
from vaedeploy.photos import load_photos
from vaedeploy.quality import LIMITS, Quality, find_faults, measure_batch, measure_quality

KODAK = Path(__file__).parents[2] / "shared" / "images" / "kodak"
TILE = 128

Picture = faults.Picture
Fault = Callable[[Picture, float], np.ndarray]

GREEN = partial(faults.cast, color=(-0.5, 1, -0.5))

# The word, the fault, its strengths: seen by nobody, then rising. The third is the level from which the detector always fires,
# as docs/fidelity.md states it; the last is the strong one, at which the fault must be told first.
GRADED: dict[str, tuple[str, Fault, tuple[float, ...], Callable[[Quality], float]]] = {
    "wash out": ("washed out", faults.wash_out, (0.02, 0.05, 0.1, 0.2, 0.4), lambda q: -q.color.chroma_ratio),
    "fade": ("washed out", lambda p, s: faults.saturate(p, -s), (0.02, 0.05, 0.1, 0.2, 0.4), lambda q: -q.color.chroma_ratio),
    "saturate": ("over-saturated", faults.saturate, (0.02, 0.05, 0.2, 0.3, 0.5), lambda q: q.color.chroma_ratio),
    "harden": ("too much contrast", lambda p, s: faults.wash_out(p, -s), (0.02, 0.05, 0.1, 0.2, 0.4), lambda q: q.contrast.global_ratio),
    "green cast": ("green cast", GREEN, (0.6, 1, 4, 8, 16), lambda q: q.color.cast),
    "grey veil": ("grey cast", faults.cast, (1, 4, 8, 16, 24), lambda q: q.contrast.mid_shift),
    "darken": ("too dark", lambda p, s: faults.cast(p, -s), (1, 4, 8, 16, 24), lambda q: -q.contrast.mid_shift),
    "blur": ("blurred", faults.blur, (0.2, 0.3, 0.5, 1, 2), lambda q: -q.detail.sharpness),
    "sharpen": ("over-sharpened", faults.sharpen, (0.05, 0.1, 0.4, 0.8, 1.6), lambda q: q.detail.sharpening),
    "grid": ("grid", faults.grid, (0.3, 0.6, 2, 4, 8), lambda q: q.artifacts.grid),
    "seams": ("seams", faults.seams, (0.1, 0.5, 1, 4, 8), lambda q: q.artifacts.seams or 0.0),
    "posterize": ("banding", lambda p, s: faults.posterize(p, int(s)), (1, 2, 8, 16, 24), lambda q: q.artifacts.banding),
    "fry": ("fried pixels", faults.fry, (0, 2, 50, 200, 1000), lambda q: q.artifacts.fried),
}  # fmt: skip
