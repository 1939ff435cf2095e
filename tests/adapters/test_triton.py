"""Requests of several shapes together, by a VAE. tests/triton has the whole adapter in Triton: make test-triton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from arrays import noise
from tiny_bundle import tiny_bundle

import vaedeploy as vd
from vaedeploy.adapters.triton import Asked, compute_together


@pytest.fixture
def vae(tmp_path: Path) -> Iterator[vd.VAE]:
    with vd.VAE(tiny_bundle(tmp_path / "tiny").path) as vae:
        yield vae


def test_each_request_gets_its_own_outputs(vae: vd.VAE) -> None:
    asked = [
        Asked(noise(1, 2, 2, 3, seed=1), ["image", "finite"]),
        Asked(noise(2, 2, 4, 3, seed=2), ["image_u8"]),
        Asked(noise(3, 2, 2, 3, seed=3), ["image_u8"]),
    ]
    for one, answer in zip(asked, compute_together(vae, "decoder", asked), strict=True):
        assert isinstance(answer, dict)
        assert set(answer) == set(one.outputs)
        for name, value in vae.compute("decoder", one.array, one.outputs).items():
            np.testing.assert_array_equal(answer[name], value, strict=True)


def test_what_is_wrong_with_one_is_not_the_others_error(vae: vd.VAE) -> None:
    asked = [Asked(noise(1, 2, 2, 2, seed=index), ["image"]) for index in range(3)]
    asked[1].array[0, 0, 0, 0] = np.inf
    first, second, third = compute_together(vae, "decoder", asked)
    assert isinstance(first, dict)
    assert isinstance(third, dict)
    assert isinstance(second, vd.LatentError)
    assert compute_together(vae, "decoder", []) == []


def test_images_of_both_types_are_not_mixed(vae: vd.VAE) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    planes = noise(1, 3, 8, 8).clip(-1, 1)
    asked = [Asked(levels, ["latent_mean"]), Asked(planes, ["latent_mean"])]
    for one, answer in zip(asked, compute_together(vae, "encoder", asked), strict=True):
        assert isinstance(answer, dict)
        np.testing.assert_array_equal(answer["latent_mean"], vae.encode(one.array))
