"""Sides of images that VAEs are tried on: about the same pixels at every factor."""

from __future__ import annotations

import pytest

from vaedeploy.values.trials import trial_latents

SIDES = (8, 12, 16, 24)


@pytest.mark.parametrize("factor", [1, 4, 8, 15])
def test_up_to_8_they_are_as_many_latents(factor: int) -> None:
    assert [trial_latents(side, factor) for side in SIDES] == list(SIDES)


@pytest.mark.parametrize(
    ("factor", "latents"), [(16, [4, 6, 8, 12]), (32, [2, 3, 4, 6]), (64, [1, 2, 2, 3]), (128, [1, 2, 2, 3])]
)
def test_beyond_they_are_about_as_many_pixels(factor: int, latents: list[int]) -> None:
    assert [trial_latents(side, factor) for side in SIDES] == latents
