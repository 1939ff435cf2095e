"""A bundle in diffusers' pipelines, against the VAE that it was exported from."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from small_pipelines import MODELS, SIZE, images_of, pipeline, sd
from tiny_bundle import tiny_bundle

from vaedeploy.adapters.diffusers import BundleVAE, bundle_config
from vaedeploy.bundle import Bundle
from vaedeploy.errors import ImageError, InputError, LatentError
from vaedeploy.pipeline.export import export_vae
from vaedeploy.runtime import VAE
from vaedeploy.source import get_preset
from vaedeploy.values.latent import LatentSpec

ROUNDING = 2e-5
"""Of images in [0, 1]: the limit that a bundle in float32 keeps against PyTorch."""


@pytest.fixture(scope="module")
def original() -> AutoencoderKL:
    """The demo VAE as diffusers has it."""
    preset = get_preset("demo")
    assert preset.packaged_file
    vae = AutoencoderKL(
        **msgspec.structs.asdict(preset.config), scaling_factor=preset.latent.scale, shift_factor=preset.latent.shift
    )
    vae.load_state_dict(load_file(preset.packaged_file))
    return vae.eval()


@pytest.fixture(scope="module")
def ours(demo_bundle: Bundle) -> Iterator[BundleVAE]:
    with VAE(demo_bundle.path) as vae:
        yield BundleVAE(vae)


@pytest.fixture
def tiny(tmp_path: Path) -> BundleVAE:
    return BundleVAE.from_bundle(tiny_bundle(tmp_path / "tiny").path)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape == (1, SIZE, SIZE, 3)
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)


# Pipelines

pytestmark = pytest.mark.filterwarnings("ignore:::diffusers")  # of its own, with numpy and with its deprecated names
full = pytest.mark.full


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("StableDiffusion", ""),
        pytest.param("StableDiffusion", "Img2Img", marks=full),
        pytest.param("StableDiffusionXL", "", marks=full),
        ("StableDiffusionXL", "Img2Img"),
        pytest.param("StableDiffusion3", "", marks=full),
        pytest.param("StableDiffusion3", "Img2Img", marks=full),
        ("StableDiffusion3", "Inpaint"),
        ("Flux", ""),
        pytest.param("Flux", "Img2Img", marks=full),
        pytest.param("Flux", "Inpaint", marks=full),
    ],
)
def test_pipeline_gives_what_the_vae_gives_in_it(
    model: str, task: str, original: AutoencoderKL, ours: BundleVAE
) -> None:
    made = MODELS[model](16)
    found, expected = (images_of(pipeline(model, task, vae, made), made, task) for vae in (ours, original))
    assert_close(found, expected)


@pytest.mark.full
@pytest.mark.parametrize(
    ("model", "inputs"), [("StableDiffusion", 4), ("StableDiffusion", 9), ("StableDiffusionXL", 4)]
)
def test_inpainting_with_four_channels(model: str, inputs: int, small_vae: Path, tmp_path: Path) -> None:
    made = sd(4, inputs) if model == "StableDiffusion" else MODELS[model](4)
    bundle = export_vae(str(small_vae), out=tmp_path / "small", verify=False)
    with pytest.warns(UserWarning, match="was never verified"):
        ours = BundleVAE.from_bundle(bundle.path)
    vaes = (ours, AutoencoderKL.from_pretrained(small_vae, low_cpu_mem_usage=False))
    found, expected = (images_of(pipeline(model, "Inpaint", vae, made), made, "Inpaint") for vae in vaes)
    assert_close(found, expected)


def test_what_programs_do_with_a_pipeline(original: AutoencoderKL, ours: BundleVAE, tmp_path: Path) -> None:
    made = MODELS["StableDiffusion"](16)
    expected = images_of(pipeline("StableDiffusion", "", original, made), made, "")
    pipe: Any = pipeline("StableDiffusion", "", original, made)
    pipe.vae = ours
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    pipe.vae.requires_grad_(False).eval()
    pipe.enable_attention_slicing()
    pipe.to(torch.float32).to("cpu").vae.to(memory_format=torch.channels_last)
    assert pipe.device == torch.device("cpu")
    assert_close(images_of(pipe, made, ""), expected)
    pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "vae").exists()


# The module


def test_it_is_a_module_without_parameters(ours: BundleVAE) -> None:
    assert not list(ours.parameters())
    assert not ours.state_dict()
    assert not ours.training
    assert "VAE(" in repr(ours)


def test_moments_and_noise_are_those_of_the_vae(original: AutoencoderKL, ours: BundleVAE) -> None:
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected, found = original.encode(image).latent_dist, ours.encode(image).latent_dist
    for name in ("mean", "std"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=2e-5, atol=2e-5)
    samples = [d.sample(torch.Generator().manual_seed(3)) for d in (found, expected)]
    torch.testing.assert_close(*samples, rtol=2e-5, atol=2e-5)
    assert torch.equal(found.mode(), found.mean)
    (again,) = ours.encode(image, return_dict=False)
    assert torch.equal(again.mean, found.mean)


def test_forward_encodes_and_decodes(original: AutoencoderKL, ours: BundleVAE) -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for sampled in (False, True):
        results = [
            vae(image, sample_posterior=sampled, generator=torch.Generator().manual_seed(1)).sample
            for vae in (ours, original)
        ]
        torch.testing.assert_close(*results, rtol=0, atol=2 * ROUNDING)
    (one,) = ours(image, return_dict=False)
    assert not one.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_have_the_type_that_it_was_moved_to(tiny: BundleVAE, dtype: torch.dtype) -> None:
    latent = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = tiny.decode(latent.float()).sample
    assert expected.dtype == tiny.dtype == torch.float32
    moved = copy.deepcopy(tiny).to(dtype)
    assert moved.dtype == dtype
    assert moved.config == tiny.config
    assert moved.config.scaling_factor == tiny.config.scaling_factor
    found = moved.decode(latent).sample
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))
    assert moved.encode(found.clamp(-1, 1)).latent_dist.sample().dtype == dtype


def test_tensors_of_any_layout(tiny: BundleVAE) -> None:
    latent = torch.randn(1, 2, 4, 4, requires_grad=True)
    expected = tiny.decode(latent).sample
    assert not expected.requires_grad
    assert torch.equal(tiny.decode(latent.to(memory_format=torch.channels_last)).sample, expected)


def test_what_is_no_tensor_of_a_floating_type_is_refused(tiny: BundleVAE) -> None:
    """torch would make floating numbers of all but the first: bytes in [0, 255], and the real part alone."""
    image = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ImageError, match=r"^image is of type ndarray; give a torch\.Tensor$"):
        tiny.encode(image.numpy())  # type: ignore[arg-type]
    for dtype in (torch.uint8, torch.bool, torch.complex64):
        with pytest.raises(ImageError, match=rf"^image is {dtype}; give floating numbers in \[-1, 1\]$"):
            tiny.encode(image.to(dtype))
    with pytest.raises(LatentError, match=r"^latent is torch\.int64; give floating numbers$"):
        tiny.decode(torch.zeros(1, 2, 2, 2, dtype=torch.int64))
    with pytest.raises(InputError, match=r"^vae is of type str; give an open vaedeploy\.VAE, or BundleVAE\.from_"):
        BundleVAE("tiny")  # type: ignore[arg-type]


def test_it_is_copied_and_saved_with_its_type(tiny: BundleVAE) -> None:
    """Each copy opens the bundle again."""
    image = torch.rand(1, 3, 8, 8)
    moved = tiny.to(torch.bfloat16)
    file = io.BytesIO()
    torch.save(moved, file)
    file.seek(0)
    for other in (copy.deepcopy(moved), pickle.loads(pickle.dumps(moved)), torch.load(file, weights_only=False)):
        assert other.vae is not moved.vae
        assert (other.dtype, other.config, other.training) == (torch.bfloat16, moved.config, False)
        assert torch.equal(other.encode(image).latent_dist.parameters, moved.encode(image).latent_dist.parameters)


def test_gradients_and_autocast_change_nothing(tiny: BundleVAE) -> None:
    image = torch.rand(1, 3, 8, 8)
    expected = tiny.encode(image).latent_dist.parameters
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tiny.encode(image).latent_dist.parameters, expected)
    with torch.inference_mode():
        assert torch.equal(tiny.encode(image).latent_dist.parameters, expected)
    found = tiny.encode(image.requires_grad_()).latent_dist
    assert torch.equal(found.parameters, expected)
    assert not found.sample().requires_grad


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_programs_may_compile_it(tiny: BundleVAE) -> None:
    latent = torch.rand(1, 2, 2, 2)
    expected = tiny.decode(latent).sample
    decode = torch.compile(tiny.decode, backend="eager")
    around = torch.compile(lambda half: tiny.decode(half + half).sample + 0, backend="eager")
    assert torch.equal(decode(latent).sample, expected)
    assert torch.equal(around(latent / 2), expected)


def test_a_generator_for_each_image(tiny: BundleVAE) -> None:
    image = torch.rand(2, 3, 8, 8)
    distribution = tiny.encode(image).latent_dist
    both = distribution.sample([torch.Generator().manual_seed(seed) for seed in (3, 4)])
    for index, seed in enumerate((3, 4)):
        one = tiny.encode(image[index : index + 1]).latent_dist.sample(torch.Generator().manual_seed(seed))
        torch.testing.assert_close(both[index : index + 1], one)


def test_a_vae_without_a_distribution_gives_latents(tmp_path: Path) -> None:
    vae = BundleVAE.from_bundle(tiny_bundle(tmp_path / "tiny", sampled=False).path)
    image = torch.rand(1, 3, 8, 8)
    assert vae.encode(image).latents.shape == (1, 2, 2, 2)
    (latent,) = vae.encode(image, return_dict=False)
    assert torch.equal(vae(image).sample, vae.decode(latent).sample)


# Its config


def test_config_says_what_the_vae_s_does(original: AutoencoderKL, ours: BundleVAE) -> None:
    for name in ("latent_channels", "scaling_factor", "shift_factor", "latents_mean", "latents_std"):
        assert ours.config[name] == getattr(ours.config, name) == original.config[name], name
    assert len(ours.config.block_out_channels) == len(original.config.block_out_channels)
    assert ours.config.force_upcast is False


def test_config_of_a_contract_for_each_channel() -> None:
    """Latents of SDXL's pipelines: raw * scaling_factor, less latents_mean, by latents_std."""
    spec = LatentSpec(channels=2, factor=8, scale=(0.5, 0.25), shift=(1.0, 0.0))
    config = bundle_config(spec)
    assert (config.scaling_factor, config.shift_factor) == (1.0, 0.0)
    assert (config.latents_mean, config.latents_std) == ([1.0, 0.0], [2.0, 4.0])


def test_what_is_not_there_says_so(tiny: BundleVAE) -> None:
    assert not hasattr(tiny.config, "z_dim")
    assert getattr(tiny.config, "z_dim", 7) == 7
    with pytest.raises(AttributeError, match=r"^the config of a BundleVAE has no z_dim\. It has latent_channels, "):
        _ = tiny.config.z_dim
    with pytest.raises(AttributeError, match=r"^BundleVAE has no post_quant_conv: it runs a bundle's graphs, "):
        _ = tiny.post_quant_conv
