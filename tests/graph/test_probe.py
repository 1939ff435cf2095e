"""Modules that do not give what the contract says are told before they are traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from vaedeploy.errors import ExportError
from vaedeploy.graph.probe import probe_part
from vaedeploy.testing.tiny import TinyDecoder, TinyEncoder, tiny_reference
from vaedeploy.values.kinds import Part
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.reference import Reference

PARTS: tuple[Part, ...] = ("encoder", "decoder")
STATED = "the latent contract (channels=4, factor=4, sampled={})"


class Gives(nn.Module):
    """What a function makes of the input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, value: Tensor) -> Any:
        return self.function(value)


def probe(part: Part, module: nn.Module, sampled: bool = True) -> None:
    modules: dict[str, nn.Module] = {"encoder": TinyEncoder(4), "decoder": TinyDecoder(4), part: module}
    probe_part(Reference(**modules, latent=LatentSpec(4, 4, 1.0, sampled=sampled)), part, 2, 12, 20)


def refusal(part: Part, module: nn.Module, sampled: bool = True) -> str:
    with pytest.raises(ExportError) as error:
        probe(part, module, sampled)
    return str(error.value)


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
    )


def test_what_keeps_the_contract_passes(autoencoder: AutoencoderKL) -> None:
    def distribution(image: Tensor) -> tuple[Tensor, Tensor]:
        latent = autoencoder.encode(image).latent_dist
        return latent.mean, latent.std

    probe("encoder", TinyEncoder(4))
    probe("encoder", TinyEncoder(4, sampled=False), sampled=False)
    probe("decoder", TinyDecoder(4))
    with torch.no_grad():
        probe("encoder", Gives(distribution))
        probe("decoder", Gives(lambda latent: autoencoder.decode(latent).sample))


def test_what_diffusers_gives_is_told_by_its_name(autoencoder: AutoencoderKL) -> None:
    assert refusal("encoder", Gives(autoencoder.encode)) == (
        f"the encoder (Gives) gives an object of type AutoencoderKLOutput; {STATED.format(True)} wants a tuple of "
        "two tensors, (mean, std): .latent_dist has .mean and .std"
    )
    assert refusal("decoder", Gives(autoencoder.decode)) == (
        f"the decoder (Gives) gives an object of type DecoderOutput; {STATED.format(True)} wants one tensor: "
        "return its .sample"
    )
    # diffusers' own encoder gives the mean and the logarithm of the variance in one.
    assert refusal("encoder", autoencoder.encoder) == (
        f"the encoder (Encoder) gives one tensor; {STATED.format(True)} wants a tuple of two tensors, (mean, std): "
        "split it into mean and std, or say sampled=False where there is no distribution"
    )


@pytest.mark.parametrize(
    ("part", "module", "sampled", "given", "wanted"),
    [
        ("encoder", TinyEncoder(4), False, "a tuple of 2", "one tensor"),
        ("encoder", Gives(lambda image: [image, image]), True, "a list of 2", "a tuple of two tensors, (mean, std)"),
        ("decoder", Gives(lambda latent: (latent,)), True, "a tuple of 1", "one tensor"),
        ("decoder", Gives(lambda latent: None), True, "an object of type NoneType", "one tensor"),
    ],
)
def test_another_number_of_outputs(part: Part, module: nn.Module, sampled: bool, given: str, wanted: str) -> None:
    name = type(module).__name__
    assert refusal(part, module, sampled) == (
        f"the {part} ({name}) gives {given}; {STATED.format(sampled)} wants {wanted}"
    )


def test_another_shape() -> None:
    with pytest.raises(ExportError) as error:
        probe_part(Reference(TinyEncoder(4), TinyDecoder(4), LatentSpec(4, 8, 1.0)), "encoder", 2, 24, 40)
    assert str(error.value) == (
        "the encoder (TinyEncoder) gives latent_mean of shape (2, 4, 6, 10) for an input of (2, 3, 24, 40); "
        "the latent contract (channels=4, factor=8, sampled=True) wants (2, 4, 3, 5)"
    )


def test_images_of_other_channels_than_the_contract_says() -> None:
    rgba = tiny_reference(image_channels=4)
    for part in PARTS:
        probe_part(rgba, part, 2, 32, 48)
    with pytest.raises(ExportError) as error:
        probe_part(Reference(rgba.encoder, TinyDecoder(4), rgba.latent), "decoder", 2, 32, 48)
    assert str(error.value) == (
        "the decoder (TinyDecoder) gives image of shape (2, 3, 32, 48) for an input of (2, 4, 8, 12); the latent "
        "contract (channels=4, factor=4, sampled=True, image_channels=4) wants (2, 4, 32, 48)"
    )


def test_random_numbers_are_refused_and_the_callers_own_go_on() -> None:
    noisy = Reference(TinyEncoder(4), Gives(lambda latent: latent[:, :3] + torch.randn(1)), LatentSpec(4, 1, 1.0))
    before = torch.get_rng_state()
    with pytest.raises(ExportError, match=r"^the decoder \(Gives\) draws random numbers, and a graph must not\. "):
        probe_part(noisy, "decoder", 2, 3, 5)
    assert torch.equal(before, torch.get_rng_state())


def test_a_log_variance_is_refused() -> None:
    encoder = TinyEncoder(4)

    def log_variance(image: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = encoder(image)
        return mean, 2 * torch.log(std) - 4

    told = refusal("encoder", Gives(log_variance))
    assert told.startswith("the encoder (Gives) gives a standard deviation of -")
    assert "give exp(0.5 * logvar) in their place" in told


def test_dropout_is_off() -> None:
    probe("decoder", nn.Sequential(nn.Dropout(), TinyDecoder(4)).train())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(kind: torch.dtype) -> None:
    assert refusal("decoder", TinyDecoder(4).to(kind)) == (
        f"the decoder (TinyDecoder) is in {kind} (body.0.weight); export takes float32: call .float()"
    )


def test_another_device_is_refused() -> None:
    assert refusal("decoder", TinyDecoder(4).to("meta")) == (
        "the decoder (TinyDecoder) is on the device meta (body.0.weight); export takes the CPU: call .cpu()"
    )


def test_a_module_that_fails_says_how() -> None:
    assert refusal("decoder", TinyDecoder(5)).startswith(
        "the decoder (TinyDecoder) fails on a float32 input of (2, 4, 3, 5): Given groups=1, weight of size "
    )


class OfOneSize(nn.Module):
    """A half with an embedding for each place."""

    def __init__(self, half: nn.Module, *shape: int) -> None:
        super().__init__()
        self.inner, self.places = half, nn.Parameter(torch.zeros(shape))

    def forward(self, value: Tensor) -> Any:
        return self.inner(value + self.places)


@pytest.mark.parametrize(
    ("part", "module", "taken"),
    [
        ("encoder", OfOneSize(TinyEncoder(4), 1, 3, 64, 64), "(2, 3, 64, 64)"),
        ("encoder", OfOneSize(TinyEncoder(4), 1, 3, 224, 224), "(2, 3, 224, 224)"),
        ("decoder", OfOneSize(TinyDecoder(4), 1, 4, 32, 32), "(2, 4, 32, 32)"),
    ],
)
def test_modules_of_one_size_are_told_with_the_size(part: Part, module: nn.Module, taken: str) -> None:
    told = refusal(part, module)
    assert told.startswith(f"the {part} (OfOneSize) fails on a float32 input of (2, ")
    assert told.endswith(
        f". It takes one of {taken}, but a bundle takes any batch, and any height and width that are multiples of 4 "
        "pixels: let what fixes the size, such as a position embedding or a view, follow the input"
    )


def test_modules_of_one_image_are_told() -> None:
    decoder = TinyDecoder(4)
    told = refusal("decoder", Gives(lambda latent: decoder(latent.view(1, 4, *latent.shape[2:]))))
    assert "It takes one of (1, 4, 3, 5), but a bundle takes any batch" in told


@pytest.mark.parametrize(
    ("part", "module", "name"),
    [("encoder", TinyEncoder(4), "body.0.weight"), ("decoder", TinyDecoder(4), "body.4.bias")],
)
def test_broken_weights_are_told_before_the_work(part: Part, module: nn.Module, name: str) -> None:
    with torch.no_grad():
        module.get_parameter(name).flatten()[0] = torch.inf
    kind = type(module).__name__
    assert refusal(part, module) == (
        f"the {part} ({kind}) gives NaN or infinity, and has infinity in its tensor {name}. Load or train it again"
    )


def test_a_module_is_in_the_mode_that_it_had_after_a_probe() -> None:
    encoder = nn.Sequential(nn.Dropout(), TinyEncoder(4).eval())
    probe("encoder", encoder)
    assert [module.training for module in encoder.modules()][:3] == [True, True, False]
