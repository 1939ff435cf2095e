"""Images with opacity: the mask of verification, and what is seen of them."""

from __future__ import annotations

import numpy as np
import pytest

from vaedeploy.images.opacity import (
    as_seen,
    has_opacity,
    is_opaque,
    on_checkerboard,
    on_white,
    verification_mask,
    with_opacity,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (96, 64), (72, 88), (512, 512)])
def test_each_size_of_the_mask_has_smooth_and_sharp_opacity(height: int, width: int) -> None:
    mask = verification_mask(height, width)
    assert (mask.shape, mask.dtype) == ((height, width), np.uint8)
    assert (mask == verification_mask(height, width)).all()
    assert 0.1 < (mask == 0).mean() < 0.25
    assert 0.2 < (mask == 255).mean() < 0.5
    first, middle = mask[0].astype(int), mask[height // 2].astype(int)
    assert (np.diff(first) >= 0).all()
    assert np.diff(first).max() <= 1 + 255 / (0.6 * width)  # a ramp, rounded
    assert np.diff(middle).max() > 100  # the ellipse's edge
    assert middle[width // 2] == 255 > first[width // 2]


def test_opacity_is_a_fourth_channel() -> None:
    opaque = with_opacity(PIXELS)
    assert opaque.shape == (20, 24, 4)
    assert (opaque[..., 3] == 255).all()
    assert (has_opacity(PIXELS), has_opacity(opaque)) == (False, True)
    assert is_opaque(PIXELS)
    assert is_opaque(opaque)
    assert not is_opaque(with_opacity(PIXELS, 254))
    mask = verification_mask(20, 24)
    batch = with_opacity(np.stack([PIXELS, PIXELS]), mask)
    assert (batch[..., :3] == PIXELS).all()
    assert (batch[..., 3] == mask).all()


def test_in_front_of_white() -> None:
    image = np.array([[[0, 100, 255, 255], [0, 100, 255, 0], [0, 100, 255, 51]]], np.uint8)
    np.testing.assert_array_equal(on_white(image), [[[0, 100, 255], [255, 255, 255], [204, 224, 255]]])
    assert on_white(PIXELS) is PIXELS
    hidden = image.copy()
    hidden[0, 1, :3] = 7
    np.testing.assert_array_equal(as_seen(hidden), as_seen(image))
    np.testing.assert_array_equal(as_seen(image)[..., 3], image[..., 3])
    assert as_seen(PIXELS) is PIXELS


def test_in_front_of_a_checkerboard() -> None:
    clear = np.zeros((16, 24, 4), np.uint8)
    board = on_checkerboard(clear)
    assert [board[y, x, 0] for y, x in ((0, 0), (7, 7), (0, 8), (8, 0), (8, 8), (0, 16))] == [
        255,
        255,
        204,
        204,
        255,
        255,
    ]
    np.testing.assert_array_equal(on_checkerboard(with_opacity(PIXELS)), PIXELS)
    assert on_checkerboard(PIXELS) is PIXELS
