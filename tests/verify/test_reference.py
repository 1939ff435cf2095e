"""What PyTorch in float64 gives, and references that are refused."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import SCALE, SHAPES, SHIFT, scaled_reference
from torch import Tensor, nn

from vaedeploy.bundle.golden import GoldenCase, decode_golden, encode_golden
from vaedeploy.errors import ExportError
from vaedeploy.images.photos import Photo, crop_batch, load_photos
from vaedeploy.testing.tiny import TinyDecoder, tiny_reference
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.reference import Reference
from vaedeploy.verify.reference import compute_golden
from vaedeploy.verify.shapes import verification_shapes


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    return load_photos()


@pytest.fixture(scope="module")
def reference() -> Reference:
    return scaled_reference()


@pytest.fixture(scope="module")
def cases(reference: Reference, photos: list[Photo]) -> tuple[GoldenCase, ...]:
    return compute_golden(reference, photos, SHAPES)


def test_each_item_is_told_with_the_size_of_its_photograph(photos: list[Photo], cases: tuple[GoldenCase, ...]) -> None:
    sized = {photo.shape[:2]: photo for photo in photos}
    for case in cases:
        assert len(case.full) == len(case.photo)
        for full, item in zip(case.full, case.photo, strict=True):
            assert (crop_batch([sized[full]], 1, *item.shape[:2])[0] == item).all()


def test_outputs_are_those_of_a_float64_copy(reference: Reference, cases: tuple[GoldenCase, ...]) -> None:
    encoder, decoder = (
        tiny_reference(scale=SCALE, shift=SHIFT).encoder.double(),
        tiny_reference(scale=SCALE, shift=SHIFT).decoder.double(),
    )
    scale, shift = (torch.tensor(v).double().reshape(1, 4, 1, 1) for v in (SCALE, SHIFT))
    for case, shape in zip(cases, SHAPES, strict=True):
        assert case.photo.shape == (shape.batch, shape.height, shape.width, 3)
        x = torch.from_numpy(case.photo).permute(0, 3, 1, 2).float() / 127.5 - 1
        mean, std = encoder(x.double())
        latent = ((mean - shift) * scale).float()
        np.testing.assert_array_equal(case.latents["latent_mean"], latent.numpy())
        np.testing.assert_array_equal(case.latents["latent_std"], (std * scale.abs()).float().numpy())
        image = decoder(latent.double() / scale + shift)
        np.testing.assert_allclose(case.image, image.float().numpy(), rtol=2e-7, atol=1e-7)
        assert case.image.dtype == case.latents["latent_mean"].dtype == np.float32


def test_golden_cases_of_a_16_channel_vae_are_under_10_mb() -> None:
    size = 0
    for shape in verification_shapes(8):
        pixels = shape.batch * shape.height * shape.width
        size += pixels * 3 + pixels * 3 * 4 + 2 * (pixels // 64) * 16 * 4
    assert size < 10_000_000


class Rearranged(nn.Module):
    """A 1x1 encoder that ends in a permutation, so that its result does not lie in memory as its shape says."""

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.permute(0, 2, 3, 1) @ torch.arange(12.0).reshape(3, 4)
        return pixels.permute(0, 3, 1, 2)


def test_outputs_that_lie_otherwise_in_memory_are_kept(photos: list[Photo]) -> None:
    decoder = nn.Sequential(nn.Conv2d(4, 3, 1), nn.Upsample(scale_factor=2.0), nn.AvgPool2d(2), nn.GroupNorm(1, 3))
    reference = Reference(Rearranged(), decoder.eval(), LatentSpec(channels=4, factor=1, scale=1.0, sampled=False))
    (case,) = compute_golden(reference, photos, SHAPES[:1])
    (read,) = decode_golden(encode_golden([case], "abc"), "abc")
    np.testing.assert_array_equal(read.latents["latent"], case.latents["latent"])
    x = torch.from_numpy(case.photo).permute(0, 3, 1, 2).double() / 127.5 - 1
    weights = torch.arange(12.0).double().reshape(3, 4)
    np.testing.assert_allclose(read.latents["latent"], torch.einsum("bchw,cd->bdhw", x, weights).numpy(), atol=1e-5)
    np.testing.assert_array_equal(read.image, case.image)


class NotANumber(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, value: Tensor) -> Any:
        return self.module(value) * torch.nan


def test_nan_in_the_reference_is_refused(photos: list[Photo]) -> None:
    whole = tiny_reference(sampled=False)
    for part, name in (("encoder", "latent"), ("decoder", "image")):
        broken = dataclasses.replace(whole, **{part: NotANumber(getattr(whole, part))})
        with pytest.raises(ExportError) as error:
            compute_golden(broken, photos, SHAPES[:1])
        assert str(error.value) == (
            f"PyTorch itself gives NaN or infinity in {name}: the {part} (NotANumber) has it first after the last of "
            "its modules, in NotANumber.forward, and none of its tensors has"
        )


class Rooted(nn.Module):
    """Gives NaN where a latent is below 0: between two modules, or in the second."""

    def __init__(self, decoder: nn.Module, inside: bool) -> None:
        super().__init__()
        self.decoder, self.inside = decoder, inside
        self.root = Root() if inside else nn.Identity()

    def forward(self, latent: Tensor) -> Any:
        return self.decoder(self.root(latent) if self.inside else self.root(latent.sqrt()))


class Root(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return value.sqrt()


@pytest.mark.parametrize(("inside", "place"), [(True, "root (Root) gives"), (False, "root (Identity) is given")])
def test_nan_is_told_with_the_module_that_has_it_first(photos: list[Photo], inside: bool, place: str) -> None:
    whole = tiny_reference()
    broken = dataclasses.replace(whole, decoder=Rooted(whole.decoder, inside))
    with pytest.raises(ExportError, match=rf"the decoder \(Rooted\) has it first in what {re.escape(place)}, and none"):
        compute_golden(broken, photos, SHAPES[:1])


@pytest.mark.parametrize(("part", "name"), [("encoder", "latent_mean"), ("decoder", "image")])
def test_nan_in_weights_is_told_with_the_tensor(photos: list[Photo], part: str, name: str) -> None:
    whole = tiny_reference()
    with torch.no_grad():
        getattr(whole, part).get_parameter("body.0.weight")[0, 0, 0, 0] = torch.nan
    kind = type(getattr(whole, part)).__name__
    with pytest.raises(ExportError) as error:
        compute_golden(whole, photos, SHAPES[:1])
    assert str(error.value) == (
        f"PyTorch itself gives NaN or infinity in {name}: the {part} ({kind}) has NaN in its tensor body.0.weight. "
        "Load or train it again"
    )


def test_modules_in_training_are_compared_in_eval_mode(photos: list[Photo]) -> None:
    whole = tiny_reference()
    expected = compute_golden(whole, photos, SHAPES[:1])[0]
    encoder = nn.Sequential(nn.Dropout(), whole.encoder).train()
    found = compute_golden(dataclasses.replace(whole, encoder=encoder), photos, SHAPES[:1])[0]
    np.testing.assert_array_equal(found.latents["latent_mean"], expected.latents["latent_mean"])
    assert all(module.training for module in encoder.modules())


class Negative(nn.Module):
    """Gives a standard deviation that is negative for all but a grey image."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.encoder(image)
        return mean, std - 100 * image.abs().mean()


def test_a_negative_deviation_is_refused(photos: list[Photo]) -> None:
    whole = tiny_reference()
    with pytest.raises(ExportError, match=r"^the encoder \(Negative\) gives a standard deviation of -"):
        compute_golden(dataclasses.replace(whole, encoder=Negative(whole.encoder)), photos, SHAPES[:1])


def test_another_factor_than_the_contract_says_is_refused(photos: list[Photo]) -> None:
    reference = tiny_reference()
    doubled = nn.Sequential(TinyDecoder(4), nn.Upsample(scale_factor=2.0))
    with pytest.raises(ExportError, match=r"^PyTorch gives image of shape \(2, 3, 40, 24\) for an image of 20x12; "):
        compute_golden(dataclasses.replace(reference, decoder=doubled), photos, SHAPES[:1])


def test_a_module_that_fails_at_a_size_says_at_which(photos: list[Photo]) -> None:
    decoder = nn.Sequential(TinyDecoder(4), nn.ReflectionPad2d(14), nn.AvgPool2d(29, stride=1)).eval()
    reference = dataclasses.replace(tiny_reference(), decoder=decoder)
    with pytest.raises(ExportError) as error:
        compute_golden(reference, photos, SHAPES[:1])
    assert str(error.value).startswith(
        "the decoder (Sequential) fails at 2x20x12 (batch x height x width, in pixels), one of the sizes that every "
        "VAE is verified at: "
    )
    assert "Padding size should be less than the corresponding input dimension" in str(error.value)
