"""AutoencoderKLWan and AutoencoderKLQwenImage, one frame: the 2-D halves compute what the 3-D classes do."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageUpsample
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample, unpatchify
from safetensors.torch import save_file
from seeded_vaes import doubled, error, folds, message_of, photo, saved, seeded
from torch import Tensor, nn

from vaedeploy.errors import ContractError, WeightsError
from vaedeploy.pipeline.export import export_vae
from vaedeploy.source import load_reference
from vaedeploy.source.autoencoder_kl_wan.names import diffusers_name

SMALL: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 4,
    "num_res_blocks": 1,
    "latents_mean": [0.25, -0.5, 1.0, 0.0],
    "latents_std": [0.5, 2.0, 1.0, 4.0],
}
PATCHED = {**SMALL, "decoder_base_dim": 16, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2}

QWEN = functools.partial(AutoencoderKLQwenImage, **SMALL)
WAN_2_1 = functools.partial(AutoencoderKLWan, **SMALL)
WAN_2_2 = functools.partial(AutoencoderKLWan, **PATCHED)
CLASSES = [QWEN, WAN_2_1, WAN_2_2]
NAMES = ["qwen-image", "wan-2.1", "wan-2.2"]


def decode_before_clamp(vae: Any, latent: Tensor) -> Tensor:
    """What the class computes of one frame before it clamps, as its ``_decode`` does."""
    vae.clear_cache()
    first = {} if isinstance(vae, AutoencoderKLQwenImage) else {"first_chunk": True}
    image = vae.decoder(vae.post_quant_conv(latent[:, :, None]), feat_cache=vae._feat_map, feat_idx=[0], **first)
    return unpatchify(image, getattr(vae.config, "patch_size", None) or 1)[:, :, 0]


def keep_float64(vae: nn.Module) -> None:
    """Upsampling casts to float32 in both classes; without that, nothing but the order of sums may differ."""
    for module in vae.modules():
        if isinstance(module, WanUpsample | QwenImageUpsample):
            module.__class__ = nn.Upsample


@pytest.mark.parametrize("make", CLASSES, ids=NAMES)
def test_halves_compute_what_diffusers_does(tmp_path: Path, make: Any) -> None:
    vae = seeded(make)
    reference = load_reference(saved(vae, tmp_path / "vae"))
    encoder, decoder = doubled(reference)
    factor = 16 if getattr(vae.config, "patch_size", None) else 8
    assert reference.latent.factor == factor
    assert reference.latent.channels == 4
    image = photo(3 * factor, 5 * factor)
    vae.double()
    posterior = vae.encode(image[:, :, None]).latent_dist
    mean, std = encoder(image)
    assert error(mean, posterior.mean[:, :, 0]) < 1e-14
    assert error(std, posterior.std[:, :, 0]) < 1e-14
    decoded = decoder(mean)
    # The class itself, whose upsampling rounds to float32; then without that.
    assert error(decoded.clamp(-1, 1), vae.decode(posterior.mean).sample[:, :, 0]) < 2e-7
    keep_float64(vae)
    assert error(decoded, decode_before_clamp(vae, mean)) < 1e-14
    assert decoded.shape == image.shape


def test_qwen_image_as_its_class_upsamples(tmp_path: Path) -> None:
    vae = seeded(QWEN)
    _, decoder = doubled(load_reference(saved(vae, tmp_path / "vae")))
    latent = photo(6, 5).repeat(1, 2, 1, 1)[:, :4]
    assert error(decoder(latent), decode_before_clamp(vae.double(), latent)) < 1e-7


def test_shortcuts_that_mix_channels(tmp_path: Path) -> None:
    """Means over parts of patches, and places in a patch that show different channels."""
    blocks: dict[str, Any] = {"dim_mult": [1, 1, 4, 4], "temperal_downsample": [True, False, True]}
    vae = seeded(lambda: AutoencoderKLWan(**SMALL, **blocks, is_residual=True))
    assert [block.avg_shortcut.group_size for block in vae.encoder.down_blocks] == [8, 4, 2, 1]
    assert [block.avg_shortcut.repeats for block in vae.decoder.up_blocks[:3]] == [8, 4, 2]
    encoder, decoder = doubled(load_reference(saved(vae, tmp_path / "vae")))
    image = photo(24, 40)
    vae.double()
    keep_float64(vae)
    mean, _ = encoder(image)
    assert error(mean, vae.encode(image[:, :, None]).latent_dist.mean[:, :, 0]) < 1e-14
    assert error(decoder(mean), decode_before_clamp(vae, mean)) < 1e-14


def test_infinity_is_not_clamped_away(tmp_path: Path) -> None:
    vae = seeded(WAN_2_1)
    vae.decoder.conv_out.bias.fill_(5.0)
    decoded = load_reference(saved(vae, tmp_path / "vae")).decoder(photo(3, 3).float().repeat(1, 2, 1, 1)[:, :4])
    assert decoded.min() > 2


@pytest.mark.parametrize("make", CLASSES, ids=NAMES)
def test_contract_is_what_pipelines_compute(tmp_path: Path, make: Any) -> None:
    vae = seeded(make)
    latent = load_reference(saved(vae, tmp_path / "vae")).latent
    # As WanPipeline and QwenImagePipeline do before they decode: latents / (1 / std) + mean.
    std, mean = torch.tensor(vae.config.latents_std), torch.tensor(vae.config.latents_mean)
    seen = torch.randn(4)
    raw = seen / (1.0 / std) + mean
    assert latent.sampled
    torch.testing.assert_close((raw - torch.tensor(latent.shift)) * torch.tensor(latent.scale), seen)


def test_scaling_factor_is_not_part_of_it(tmp_path: Path) -> None:
    path = saved(seeded(WAN_2_1), tmp_path / "vae", scaling_factor=0.5, shift_factor=3.0)
    latent = load_reference(path).latent
    assert latent.scale == (2.0, 0.5, 1.0, 0.25)
    assert latent.shift == (0.25, -0.5, 1.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("make", [QWEN, WAN_2_2], ids=["qwen-image", "wan-2.2"])
def test_folder_to_verified_bundle(tmp_path: Path, verified_smaller: None, make: Any) -> None:
    """Two steps of x2, each of which is folded; Wan 2.1 is the same network as Qwen-Image."""
    vae = seeded(lambda: make(dim_mult=[1, 2, 2], temperal_downsample=[False, True]))
    bundle = export_vae(saved(vae, tmp_path / "vae"), out=tmp_path / "bundle")
    assert bundle.manifest.verification.passed
    assert bundle.manifest.vae.architecture == type(vae).__name__
    assert folds(bundle) == 2


def wan_name(name: str, blocks: int) -> str:
    """Wan's own name of a tensor of Wan 2.1's VAE with ``blocks`` residual blocks."""
    rules: list[tuple[str, Any]] = [
        (r"^post_quant_conv", "conv2"),
        (r"^quant_conv", "conv1"),
        (r"\.conv_in\.", ".conv1."),
        (r"\.norm_out\.", ".head.0."),
        (r"\.conv_out\.", ".head.2."),
        (r"resnets\.(\d+)\.norm1", r"resnets.\1.residual.0"),
        (r"(resnets|down_blocks)\.(\d+)\.norm1", r"\1.\2.residual.0"),
        (r"(resnets|down_blocks)\.(\d+)\.conv1", r"\1.\2.residual.2"),
        (r"(resnets|down_blocks)\.(\d+)\.norm2", r"\1.\2.residual.3"),
        (r"(resnets|down_blocks)\.(\d+)\.conv2", r"\1.\2.residual.6"),
        (r"conv_shortcut", "shortcut"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"middle.{2 * int(m[1])}"),
        (r"mid_block\.attentions\.0", "middle.1"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"upsamples.{int(m[1]) * (blocks + 2) + int(m[2])}"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"upsamples.{int(m[1]) * (blocks + 2) + blocks + 1}"),
        (r"down_blocks", "downsamples"),
    ]
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def test_names_of_wan_2_1() -> None:
    with torch.device("meta"):
        names = list(AutoencoderKLWan(base_dim=8).state_dict())
    theirs = {wan_name(name, 2): name for name in names}
    assert len(theirs) == len(names)
    assert convert_wan_vae_to_diffusers(dict(theirs)) == {name: name for name in names}
    assert {name: diffusers_name(name, 2) for name in theirs} == theirs
    assert [diffusers_name(name, 2) for name in names] == names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.downsamples.0.downsamples.0.residual.2.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"),
        ("encoder.downsamples.1.downsamples.0.shortcut.bias", "encoder.down_blocks.1.resnets.0.conv_shortcut.bias"),
        ("encoder.downsamples.0.downsamples.2.resample.1.bias", "encoder.down_blocks.0.downsampler.resample.1.bias"),
        ("encoder.downsamples.2.downsamples.2.time_conv.bias", "encoder.down_blocks.2.downsampler.time_conv.bias"),
        ("decoder.upsamples.1.upsamples.2.residual.6.bias", "decoder.up_blocks.1.resnets.2.conv2.bias"),
        ("decoder.upsamples.0.upsamples.3.time_conv.weight", "decoder.up_blocks.0.upsampler.time_conv.weight"),
        ("decoder.upsamples.2.upsamples.3.resample.1.weight", "decoder.up_blocks.2.upsampler.resample.1.weight"),
    ],
)
def test_names_of_wan_2_2(name: str, expected: str) -> None:
    assert diffusers_name(name, 2) == expected


def test_a_folder_with_wans_names(tmp_path: Path) -> None:
    vae = seeded(WAN_2_1)
    path = saved(vae, tmp_path / "vae")
    expected = load_reference(path).identity
    renamed = {wan_name(name, 1): tensor for name, tensor in vae.state_dict().items()}
    save_file(renamed, path / "diffusion_pytorch_model.safetensors")
    assert load_reference(path).identity == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"in_channels": 4}, "has 4 channels in and 3 out; both must be 3 (RGB). Any VAE can be given as two modules"),
        ({"patch_size": 2}, "has 3 channels in and 3 out; both must be 12 (RGB in patches of 2x2 pixels). Any VAE"),
        ({"attn_scales": [0.5]}, "has attn_scales (0.5,), with which diffusers' class fails. Any VAE can be given"),
        (
            {"patch_size": 0},
            "is not the config of a diffusers AutoencoderKLWan: Expected `int` >= 1 - at `$.patch_size`",
        ),
        ({"spatial_norm": True}, "has fields that this vaedeploy does not know: spatial_norm True. They may change"),
    ],
)
def test_configs_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    path = saved(seeded(WAN_2_1), tmp_path / "vae", **changes)
    assert message_of(WeightsError, path).startswith(f"{path / 'config.json'} {problem}")


def test_contracts_that_cannot_be_used(tmp_path: Path) -> None:
    vae = seeded(WAN_2_1)
    path = saved(vae, tmp_path / "none", latents_mean=None, latents_std=None)
    assert "does not state the scale of its latents" in message_of(ContractError, path)
    path = saved(vae, tmp_path / "half", latents_std=None)
    assert "latents_mean and latents_std belong together" in message_of(ContractError, path)
    path = saved(vae, tmp_path / "short", latents_std=[1.0, 2.0], latents_mean=[0.0, 0.0])
    assert "2 numbers for 4 channels" in message_of(ContractError, path)


def test_weights_of_another_class(tmp_path: Path) -> None:
    path = saved(seeded(WAN_2_1), tmp_path / "vae", is_residual=True)
    assert "does not fit" in message_of(WeightsError, path)
