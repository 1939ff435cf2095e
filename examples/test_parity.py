"""Tests of a bundle, for a project's own suite: pytest --vae-bundle mse840k examples/test_parity.py

They need neither PyTorch nor the weights. Where both are there, give assert_parity the VAE in PyTorch in the place of
the second bundle.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import vaedeploy as vd
from vaedeploy.testing import assert_parity


@pytest.fixture
def image(vae: vd.VAE) -> np.ndarray:
    """(H, W, N) uint8: a smooth picture, of the smallest size that this VAE's latents have eight rows of."""
    side = 8 * vae.latent.factor
    rows, columns = np.mgrid[:side, :side] * (255 / (side - 1))
    planes = [rows, columns, (rows + columns) / 2, np.full((side, side), 255)]
    return np.stack(planes[: vae.latent.image_channels], -1).astype(np.uint8)


def test_the_bundle_is_verified(vae: vd.VAE) -> None:
    assert vae.manifest.verification is not None
    assert vae.manifest.verification.passed


def test_an_image_comes_back(vae: vd.VAE, image: np.ndarray) -> None:
    latent = vae.encode(image)
    assert latent.shape == (1, vae.latent.channels, 8, 8)
    assert vae.decode(latent).shape == (1, *image.shape)


@pytest.mark.skipif("OTHER_BUNDLE" not in os.environ, reason="names no bundle to compare with: OTHER_BUNDLE=PATH")
def test_it_is_what_is_deployed_today(vae: vd.VAE, image: np.ndarray) -> None:
    assert_parity(vae, os.environ["OTHER_BUNDLE"], [image])
