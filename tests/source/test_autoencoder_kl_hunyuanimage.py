"""HunyuanImage's VAE: the original code's names, and configs that contradict themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import message_of
from family_cases import CASES
from safetensors.torch import load_file, save_file
from torch import Tensor

from vaedeploy.errors import WeightsError
from vaedeploy.source import get_preset, load_reference
from vaedeploy.source.autoencoder_kl_hunyuanimage.config import Architecture
from vaedeploy.source.families import FAMILIES
from vaedeploy.source.network import tensor_shapes

CASE, FAMILY = CASES["AutoencoderKLHunyuanImage"], FAMILIES["AutoencoderKLHunyuanImage"]
FILE = "diffusion_pytorch_model.safetensors"


def original_names(architecture: Architecture) -> dict[str, str]:
    """diffusers' name -> that of the original code, counted as diffusers' own script for the conversion counts them."""
    starts, shapes = {}, tensor_shapes(architecture)
    for stack, resampling, more in (("encoder.down", "downsample", 0), ("decoder.up", "upsample", 1)):
        number = 0
        for stage in range(len(architecture.block_out_channels)):
            for block in range(architecture.layers_per_block + more):
                starts[f"{stack}_blocks.{number}."] = f"{stack}.{stage}.block.{block}."
                number += 1
            if f"{stack}_blocks.{number}.conv.weight" in shapes:
                starts[f"{stack}_blocks.{number}."] = f"{stack}.{stage}.{resampling}."
                number += 1
    for half in ("encoder", "decoder"):
        starts |= {f"{half}.mid_block.resnets.{n}.": f"{half}.mid.block_{n + 1}." for n in range(2)}
        starts |= {f"{half}.mid_block.attentions.0.to_{x}.": f"{half}.mid.attn_1.{x}." for x in "qkv"}
        starts[f"{half}.mid_block.attentions.0.proj."] = f"{half}.mid.attn_1.proj_out."
        starts[f"{half}.mid_block.attentions.0.norm."] = f"{half}.mid.attn_1.norm."
    return {name: original(name, starts) for name in shapes}


def original(name: str, starts: dict[str, str]) -> str:
    start = next((start for start in starts if name.startswith(start)), "")
    return starts.get(start, "") + name.removeprefix(start)


# The second is deeper than it resamples.
@pytest.mark.parametrize("changes", [{}, {"block_out_channels": (32, 32, 32, 64), "spatial_compression_ratio": 4}])
def test_names_of_the_original_code(changes: dict[str, Any]) -> None:
    preset = get_preset("hunyuanimage").config
    for architecture in (preset, FAMILY.read({**CASE.config(), **changes})):
        assert isinstance(architecture, Architecture)
        names = original_names(architecture)
        assert {"encoder.down.0.downsample.conv.weight", "decoder.mid.attn_1.proj_out.bias"} <= set(names.values())
        assert {FAMILY.diffusers_name(old, architecture): old for old in names.values()} == names
        assert all(FAMILY.diffusers_name(name, architecture) == name for name in names)


def test_folder_in_the_names_of_the_original_code(tmp_path: Path) -> None:
    path = CASE.folder(tmp_path / "saved")
    identity = load_reference(path).identity
    names = original_names(FAMILY.read(CASE.config()))
    theirs: dict[str, Tensor] = {f"vae.{names[name]}": tensor for name, tensor in load_file(path / FILE).items()}
    save_file(theirs, path / FILE)
    assert load_reference(path).identity == identity


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"spatial_compression_ratio": 4},
            "has a spatial_compression_ratio of 4 and 2 block_out_channels, with which it can be 2 at most",
        ),
        (
            {"layers_per_block": None},
            "is not the config of a diffusers AutoencoderKLHunyuanImage: Object missing required field "
            "`layers_per_block`",
        ),
    ],
)
def test_configs_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    path = CASE.folder(tmp_path / "saved")
    (path / "config.json").write_text(json.dumps({**CASE.config(), **changes}))
    assert message_of(WeightsError, path) == f"{path / 'config.json'} {problem}"
