"""The classes of Wan and Qwen-Image, one frame: the 2-D halves compute what the 3-D classes do."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import message_of
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from family_cases import CASES, ONE_FRAME, Case, class_of, decode_frame
from safetensors.torch import save_file
from torch import Tensor

from vaedeploy.errors import ContractError, WeightsError
from vaedeploy.source import get_preset, load_reference
from vaedeploy.source.autoencoder_kl_wan.names import diffusers_name
from vaedeploy.source.families import FAMILIES
from vaedeploy.source.network import build

QWEN, WAN_2_2 = CASES["AutoencoderKLQwenImage"], CASES["AutoencoderKLWan"]
WAN_2_1 = WAN_2_2._replace(arguments=ONE_FRAME, factor=2)
every_kind = pytest.mark.parametrize("case", [QWEN, WAN_2_1, WAN_2_2], ids=["qwen-image", "wan-2.1", "wan-2.2"])


def noise(*size: int) -> Tensor:
    """(2, *size), float64."""
    return torch.randn((2, *size), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def halves(case: Case) -> tuple[Any, Any]:
    """(encoder, decoder), float64."""
    encoder, decoder = build(FAMILIES[case.class_name].read(case.config()), case.tensors())
    return encoder.double(), decoder.double()


def error(ours: Tensor, other: Tensor) -> float:
    """Relative L2."""
    assert ours.shape == other.shape
    return float((ours - other).norm() / other.norm())


def folder(case: Case, path: Path, **changes: Any) -> Path:
    """What the class saves, with these changes to its config.json; a change to None leaves a field out."""
    case.folder(path)
    config = {**json.loads((path / "config.json").read_text()), **changes}
    (path / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
    return path


@every_kind
def test_decoder_is_the_class_but_for_its_float32_upsampling_and_its_clamp(case: Case) -> None:
    theirs: Any = case.theirs().double()
    latent = noise(4, 6, 5)
    ours, other = halves(case)[1](latent), theirs.decode(latent[:, :, None]).sample[:, :, 0]
    assert ours.abs().max() > 1
    assert other.abs().max() == 1
    assert error(ours.clamp(-1, 1), other) < 1e-7
    assert error(ours, decode_frame(theirs, latent)) < 1e-14


def test_wan_2_1_is_the_network_of_qwen_image() -> None:
    image, latent = noise(3, 24, 20), noise(4, 6, 5)
    (encoder, decoder), wan = halves(QWEN), WAN_2_1.theirs().double()
    assert error(encoder(image)[0], WAN_2_1.encode(wan, image)[0]) < 1e-14
    assert error(decoder(latent), WAN_2_1.decode(wan, latent)) < 1e-14


def test_shortcuts_that_mix_channels() -> None:
    """Means over parts of patches, and places in a patch that show different channels."""
    blocks = {"dim_mult": [1, 1, 4, 4], "temperal_downsample": [True, False, True], "is_residual": True}
    case = WAN_2_1._replace(arguments={**ONE_FRAME, **blocks})
    theirs: Any = case.theirs().double()
    assert [block.avg_shortcut.group_size for block in theirs.encoder.down_blocks] == [8, 4, 2, 1]
    assert [block.avg_shortcut.repeats for block in theirs.decoder.up_blocks[:3]] == [8, 4, 2]
    encoder, decoder = halves(case)
    image, latent = noise(3, 24, 40), noise(4, 3, 5)
    assert error(encoder(image)[0], case.encode(theirs, image)[0]) < 1e-14
    assert error(decoder(latent), case.decode(theirs, latent)) < 1e-14


@every_kind
def test_contract_is_what_pipelines_compute(tmp_path: Path, case: Case) -> None:
    latent = load_reference(case.folder(tmp_path)).latent
    # As WanPipeline and QwenImagePipeline do before they decode: latents / (1 / std) + mean.
    std, mean = (torch.tensor(case.arguments[name]) for name in ("latents_std", "latents_mean"))
    seen = noise(4)[0].float()
    raw = seen / (1.0 / std) + mean
    torch.testing.assert_close((raw - torch.tensor(latent.shift)) * torch.tensor(latent.scale), seen)


def test_scaling_factor_is_not_part_of_it(tmp_path: Path) -> None:
    latent = load_reference(folder(WAN_2_1, tmp_path, scaling_factor=0.5, shift_factor=3.0)).latent
    assert (latent.scale, latent.shift) == (WAN_2_1.scale, WAN_2_1.shift)


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
    expected = load_reference(WAN_2_1.folder(tmp_path)).identity
    renamed = {wan_name(name, 1): tensor for name, tensor in WAN_2_1.tensors().items()}
    save_file(renamed, tmp_path / "diffusion_pytorch_model.safetensors")
    assert load_reference(tmp_path).identity == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"in_channels": 4}, "has 4 channels in and 3 out; both must be 3 (RGB) or 4 (RGBA). Any VAE can be"),
        ({"patch_size": 2}, "has 3 channels in and 3 out; both must be 12 (RGB) or 16 (RGBA), in patches of "),
        ({"attn_scales": [0.5]}, "has attn_scales (0.5,), with which diffusers' class fails. Any VAE can be given"),
        (
            {"patch_size": 0},
            "is not the config of a diffusers AutoencoderKLWan: Expected `int` >= 1 - at `$.patch_size`",
        ),
    ],
)
def test_configs_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    path = folder(WAN_2_1, tmp_path, **changes)
    assert message_of(WeightsError, path).startswith(f"{path / 'config.json'} {problem}")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"latents_mean": None, "latents_std": None}, "does not state the scale of the latents"),
        ({"latents_std": None}, "latents_mean and latents_std belong together"),
        ({"latents_mean": [0.0, 0.0], "latents_std": [1.0, 2.0]}, "2 numbers for 4 channels"),
    ],
)
def test_contracts_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    assert problem in message_of(ContractError, folder(WAN_2_1, tmp_path, **changes))


def test_weights_of_the_other_wan(tmp_path: Path) -> None:
    assert "does not fit" in message_of(WeightsError, folder(WAN_2_1, tmp_path, is_residual=True))


@pytest.mark.parametrize(
    ("case", "channels"),
    [
        (CASES["AutoencoderKLQwenImage21"], {}),
        (QWEN, {"input_channels": 4}),
        (WAN_2_2, {"in_channels": 16, "out_channels": 16}),
    ],
    ids=["qwen-image-2.1", "qwen-image-layered", "wan-2.2"],
)
def test_images_with_opacity(tmp_path: Path, case: Case, channels: dict[str, Any]) -> None:
    case = case._replace(arguments={**case.arguments, **channels}, image_channels=4)
    reference = load_reference(case.folder(tmp_path))
    assert reference.latent.image_channels == 4
    theirs, image = case.theirs().double(), noise(4, 24, 40)
    encoder, decoder = halves(case)
    assert error(encoder(image)[0], case.encode(theirs, image)[0]) < 1e-14
    assert decoder(noise(4, 3, 5)).shape == (2, 4, 3 * case.factor, 5 * case.factor)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen-image", "AutoencoderKLQwenImage"),
        ("qwen-image-2.1", "AutoencoderKLQwenImage21"),
        ("wan-2.1", "AutoencoderKLWan"),
    ],
)
def test_presets_are_the_defaults_of_the_classes(name: str, kind: str) -> None:
    preset = get_preset(name)
    arguments = {key: p.default for key, p in inspect.signature(class_of(kind)).parameters.items()}
    assert preset.config == FAMILIES[kind].read(arguments)
    assert preset.latent is not None
    assert preset.latent.shift == tuple(arguments["latents_mean"])
    assert preset.latent.scale == tuple(1 / deviation for deviation in arguments["latents_std"])


def test_the_layered_vae_is_that_of_qwen_image_with_a_fourth_channel() -> None:
    plain, layered = get_preset("qwen-image"), get_preset("qwen-image-layered")
    assert plain.config.differences(layered.config) == ["input_channels"]
    assert plain.latent is not None
    assert layered.latent is not None
    assert plain.latent.differences(layered.latent) == [("image_channels", 3, 4)]
