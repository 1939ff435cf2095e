"""Photographs that images are judged on, and what the detectors say of one."""

from __future__ import annotations

import numpy as np
import pytest
from places import KODAK

from vaedeploy.images.files import read_image
from vaedeploy.images.photos import Photo
from vaedeploy.quality import Quality, find_faults

needs_kodak = pytest.mark.skipif(not KODAK.is_dir(), reason="the Kodak photographs are not beside this checkout")


def kodak(*numbers: int) -> list[Photo]:
    """The Kodak photographs of these numbers, (H, W, 3) uint8."""
    return [read_image(KODAK / f"kodim{number:02}.png") for number in numbers]


def quarter(photo: Photo) -> Photo:
    """Its middle: half of its height and of its width."""
    height, width, _ = photo.shape
    return np.ascontiguousarray(photo[height // 4 : -height // 4, width // 4 : -width // 4])


def words(quality: Quality) -> list[str]:
    """The names of the faults that are found."""
    return [finding.name for finding in find_faults(quality)]
