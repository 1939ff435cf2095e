"""The runtime on a tiny bundle whose images have opacity."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from tiny_bundle import tiny_bundle
from tiny_inputs import CHANNELS, FACTOR, noise

from vaedeploy.errors import ImageError, InputError
from vaedeploy.images.pixels import to_float
from vaedeploy.runtime import VAE

FORMS = "(H, W, 4) or (B, H, W, 4) uint8, or (B, 4, H, W) float in [-1, 1]"


@pytest.fixture(scope="module", params=["float", "uint8"])
def vae(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VAE]:
    image_input: Literal["float", "uint8"] = request.param
    folder = tmp_path_factory.mktemp(image_input)
    with VAE(tiny_bundle(folder / "tiny", image_channels=4, image_input=image_input).path) as opened:
        yield opened


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 4), np.uint8)


def test_images_have_four_channels(vae: VAE) -> None:
    assert vae.limits.image_channels == vae.latent.image_channels == 4
    latent = vae.encode(picture(2, 8, 12))
    assert latent.shape == (2, CHANNELS, 2, 3)
    image, floats = vae.decode(latent), vae.decode(latent, output="float")
    assert (image.shape, floats.shape) == ((2, 8, 12, 4), (2, 4, 8, 12))
    levels = np.clip(np.round((floats + np.float32(1)) * np.float32(127.5)), 0, 255)
    np.testing.assert_array_equal(image, levels.transpose(0, 2, 3, 1))
    out = np.empty((2, 8, 12, 4), np.uint8)
    assert vae.decode(latent, out=out) is out
    np.testing.assert_array_equal(out, image)


def test_opacity_is_encoded(vae: VAE) -> None:
    image = picture(8, 12)
    other = image.copy()
    other[..., 3] = 255 - other[..., 3]
    assert np.abs(vae.encode(image) - vae.encode(other)).max() > 0.01
    if vae.manifest.image_input == "float":
        np.testing.assert_array_equal(vae.encode(to_float(image[None])), vae.encode(image))


def test_opacity_is_padded_and_cut_with_the_image(vae: VAE) -> None:
    image = picture(7, 5)
    padded = np.pad(image, ((0, 1), (0, 3), (0, 0)), mode="reflect")
    latent = vae.encode(image, pad=True)
    np.testing.assert_array_equal(latent, vae.encode(padded))
    assert vae.decode(latent, size=(7, 5)).shape == (1, 7, 5, 4)


@pytest.mark.parametrize("pad", [False, True])
def test_images_of_other_channels_are_refused(vae: VAE, pad: bool) -> None:
    missing = ". This VAE takes RGBA, and the image is RGB: add opacity as a fourth channel, 255 (1.0 in floats)"
    for image, more in (
        (picture(8, 8)[..., :3], missing),
        (to_float(picture(1, 8, 8)[..., :3]), missing),
        (picture(8, 8)[..., :2], ""),
        (np.zeros((1, 5, 8, 8), np.float32), ""),
        (np.zeros((4, 8, 8), np.float32), ""),
    ):
        with pytest.raises(ImageError) as caught:
            vae.encode(image, pad=pad)
        assert str(caught.value) == f"image is {image.dtype} of shape {image.shape}; it must be {FORMS}{more}"


def test_a_place_of_three_channels_is_refused(vae: VAE) -> None:
    with pytest.raises(InputError, match=r"out is uint8 of shape \(1, 8, 8, 3\); it must be writeable uint8 of shape"):
        vae.decode(noise(1, CHANNELS, 8 // FACTOR, 8 // FACTOR), out=np.empty((1, 8, 8, 3), np.uint8))


def test_a_bundle_says_so_and_one_of_rgb_images_says_nothing(vae: VAE, tmp_path: Path) -> None:
    assert '"image_channels": 4' in (vae.path / "bundle.json").read_text()
    assert "image_channels" not in (tiny_bundle(tmp_path / "tiny").path / "bundle.json").read_text()
