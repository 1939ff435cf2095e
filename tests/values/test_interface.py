"""What each half of a VAE takes and gives."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from vaedeploy.values import interface
from vaedeploy.values.interface import Interface, Tensor, spatial_axes
from vaedeploy.values.kinds import ImageInput
from vaedeploy.values.latent import LatentSpec

LATENT = LatentSpec(channels=16, factor=8, scale=0.3611, shift=0.1159)
RGBA = LatentSpec(channels=16, factor=8, scale=1.0, image_channels=4)
PLAIN = LatentSpec(channels=3, factor=4, scale=1.0, sampled=False)


def test_the_examples_of_the_module() -> None:
    names = {**vars(interface), "LatentSpec": LatentSpec}
    test = doctest.DocTestFinder().find(interface, globs=names)
    results = [doctest.DocTestRunner().run(found) for found in test]
    assert sum(r.attempted for r in results) == 3
    assert sum(r.failed for r in results) == 0


@pytest.mark.parametrize(
    ("image_input", "name", "shape", "dtype"),
    [("float", "image", (2, 3, 24, 40), np.float32), ("uint8", "image_u8", (2, 24, 40, 3), np.uint8)],
)
def test_an_encoder(image_input: ImageInput, name: str, shape: tuple[int, ...], dtype: type) -> None:
    encoder = Interface("encoder", LATENT, image_input)
    assert (encoder.input, encoder.takes(2, 24, 40)) == (name, Tensor(shape, np.dtype(dtype)))
    assert encoder.pixels(shape) == (2, 24, 40)
    latent = Tensor((2, 16, 3, 5), np.dtype(np.float32))
    assert encoder.gives(2, 24, 40) == {"latent_mean": latent, "latent_std": latent}
    assert latent.size == 2 * 16 * 3 * 5 * 4
    assert Interface("encoder", PLAIN, image_input).outputs == ("latent",)


def test_a_decoder() -> None:
    decoder = Interface("decoder", LATENT)
    assert (decoder.input, decoder.takes(1, 16, 8).shape) == ("latent", (1, 16, 2, 1))
    assert decoder.pixels((1, 16, 2, 1)) == (1, 16, 8)
    assert decoder.gives(1, 16, 8) == {
        "image": Tensor((1, 3, 16, 8), np.dtype(np.float32)),
        "image_u8": Tensor((1, 16, 8, 3), np.dtype(np.uint8)),
        "finite": Tensor((1,), np.dtype(np.bool_)),
    }
    for name, tensor in decoder.gives(1, 16, 8).items():
        if name != "finite":
            assert [tensor.shape[axis] for axis in spatial_axes(name)] == [16, 8]


def test_images_with_opacity() -> None:
    assert Interface("encoder", RGBA).takes(2, 24, 40).shape == (2, 4, 24, 40)
    assert Interface("encoder", RGBA, "uint8").takes(2, 24, 40).shape == (2, 24, 40, 4)
    gives = Interface("decoder", RGBA).gives(2, 24, 40)
    assert (gives["image"].shape, gives["image_u8"].shape) == ((2, 4, 24, 40), (2, 24, 40, 4))


@pytest.mark.parametrize(
    ("half", "shape", "dtype", "accepted"),
    [
        (Interface("decoder", LATENT), (1, 16, 2, 3), np.float32, True),
        (Interface("decoder", LATENT), (7, 16, 1, 1), np.float32, True),
        (Interface("decoder", LATENT), (1, 4, 2, 3), np.float32, False),
        (Interface("decoder", LATENT), (1, 16, 2, 3), np.float16, False),
        (Interface("decoder", LATENT), (16, 2, 3), np.float32, False),
        (Interface("decoder", LATENT), (1, 16, 0, 3), np.float32, False),
        (Interface("encoder", LATENT), (1, 3, 9, 9), np.float32, True),  # the size is for the size rule to judge
        (Interface("encoder", LATENT), (1, 9, 9, 3), np.float32, False),
        (Interface("encoder", LATENT, "uint8"), (1, 9, 9, 3), np.uint8, True),
        (Interface("encoder", LATENT, "uint8"), (1, 3, 9, 9), np.uint8, False),
        (Interface("encoder", LATENT, "uint8"), (1, 9, 9, 3), np.float32, False),
        (Interface("encoder", LATENT), (1, 4, 9, 9), np.float32, False),
        (Interface("encoder", RGBA), (1, 4, 9, 9), np.float32, True),
        (Interface("encoder", RGBA), (1, 3, 9, 9), np.float32, False),
        (Interface("encoder", RGBA, "uint8"), (1, 9, 9, 4), np.uint8, True),
        (Interface("encoder", RGBA, "uint8"), (1, 9, 9, 3), np.uint8, False),
    ],
)
def test_what_a_half_accepts(half: Interface, shape: tuple[int, ...], dtype: type, accepted: bool) -> None:
    assert half.accepts(Tensor(shape, np.dtype(dtype))) is accepted
