"""Photographs that come with scikit-image."""

from __future__ import annotations

import numpy as np
import pytest

from vaedeploy.images.photos import Photo, load_photos


@pytest.fixture(scope="module")
def photo() -> Photo:
    """Half of scikit-image's astronaut: (256, 384, 3)."""
    return np.ascontiguousarray(load_photos()[0][:256, :384])


@pytest.fixture(scope="module")
def crops() -> list[Photo]:
    """Of scikit-image's photographs; only the first two have smooth areas."""
    astronaut, coffee, chelsea = load_photos()
    return [np.ascontiguousarray(p[:256, :320]) for p in (astronaut, coffee, chelsea)]
