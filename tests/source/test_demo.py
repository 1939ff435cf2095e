"""The VAEs that the package carries are real ones: what they make of photographs that training never saw."""

from __future__ import annotations

import numpy as np
import pytest
from places import KODAK

from vaedeploy.bundle import Bundle
from vaedeploy.images.files import read_image
from vaedeploy.runtime import VAE
from vaedeploy.runtime.unverified import UnverifiedBundleWarning
from vaedeploy.source import get_preset

NAMES = ("demo", "demo-mse")
UNSEEN = ("kodim15.png", "kodim16.png")

LINEAR_CODEC = 25.9
"""dB on the unseen photographs: 4 principal components of 8x8 blocks, fitted on kodim01 to 14."""

pytestmark = pytest.mark.slow


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((found.astype(float) - expected) ** 2)))


@pytest.fixture(scope="module")
def vaes(demo_bundle: Bundle, demo_mse_bundle: Bundle) -> dict[str, VAE]:
    with pytest.warns(UnverifiedBundleWarning):
        second = VAE(demo_mse_bundle.path)
    return {"demo": VAE(demo_bundle.path), "demo-mse": second}


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    if not KODAK.is_dir():
        pytest.skip(f"the Kodak photographs are not at {KODAK}")
    return [read_image(KODAK / name) for name in UNSEEN]


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small(name: str) -> None:
    file = get_preset(name).packaged_file
    assert file is not None
    assert file.stat().st_size < 8_000_000
    assert file.with_name("README.md").exists()


@pytest.mark.parametrize("name", NAMES)
def test_unseen_photographs_come_back(vaes: dict[str, VAE], photos: list[np.ndarray], name: str) -> None:
    """The goal: 1.5 dB over the linear codec, on each of the two, whole."""
    for photo in photos:
        assert psnr(vaes[name].decode(vaes[name].encode(photo))[0], photo) > LINEAR_CODEC + 1.5


def test_the_second_decoder_is_truer_in_squared_error(vaes: dict[str, VAE], photos: list[np.ndarray]) -> None:
    """What it was fine-tuned for, over the same latents."""
    scores = {}
    for name, vae in vaes.items():
        latents = [vae.encode(photo) for photo in photos]
        np.testing.assert_array_equal(latents[0], vaes["demo"].encode(photos[0]))
        scores[name] = np.mean([psnr(vae.decode(z)[0], p) for z, p in zip(latents, photos, strict=True)])
    assert scores["demo-mse"] > scores["demo"]


def test_latents_have_the_spread_that_the_contract_says(vaes: dict[str, VAE], photos: list[np.ndarray]) -> None:
    """Scale and shift bring latents to mean 0 and deviation 1, give or take a photograph."""
    latents = np.concatenate([vaes["demo"].encode(photo).ravel() for photo in photos])
    assert abs(latents.mean()) < 0.3
    assert 0.6 < latents.std() < 1.5
