"""Tiny autoencoders: the original code's names, and a contract that needs no statement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import message_of, write_safetensors
from family_cases import CASES
from safetensors.torch import load_file

from vaedeploy.errors import WeightsError
from vaedeploy.source import get_preset, load_reference
from vaedeploy.source.network import random_tensors
from vaedeploy.values.latent import LatentSpec

CASE = CASES["AutoencoderTiny"]
FILE = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("prefix", ["", "taesd_"])
def test_lone_file_in_the_names_of_the_original_code(tmp_path: Path, prefix: str) -> None:
    """Layers of a Sequential, of which the first of the decoder clamps its input."""
    tensors = random_tensors(get_preset("taesd3").config, seed=0)
    plain = load_reference(write_safetensors(tensors, tmp_path / "plain.safetensors"))
    original = {}
    for name, tensor in tensors.items():
        half, _, number, rest = name.split(".", 3)
        original[f"{prefix}{half}.{int(number) + (half == 'decoder')}.{rest}"] = tensor
    assert {f"{prefix}encoder.0.weight", f"{prefix}decoder.1.weight", f"{prefix}decoder.3.conv.0.bias"} <= set(original)
    reference = load_reference(write_safetensors(original, tmp_path / "taesd3.safetensors"))
    assert reference.identity == plain.identity
    assert reference.latent == LatentSpec(16, 8, 1.0, 0.0, sampled=False)
    assert reference.architecture == "AutoencoderTiny"


def test_contract_of_a_config(tmp_path: Path) -> None:
    path = CASE.folder(tmp_path / "saved")
    config = json.loads((path / "config.json").read_text())
    for changes, scale, shift in (
        ({"scaling_factor": None, "shift_factor": None}, 1.0, 0.0),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, 0.5, 0.25),
        ({"latent_magnitude": 5, "latent_shift": 0.75}, 1.0, 0.0),
    ):
        (path / "config.json").write_text(json.dumps({**config, **dict[str, Any](changes)}))
        assert load_reference(path).latent == LatentSpec(4, 4, scale, shift, sampled=False)


def test_halves_of_two_factors(tmp_path: Path) -> None:
    path = CASE.folder(tmp_path / "saved")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "upsampling_scaling_factor": 4}))
    assert message_of(WeightsError, path) == (
        f"{path / 'config.json'} has an encoder that makes images 4 times smaller, and a decoder that makes latents 16 "
        "times larger; both factors must be the same"
    )
    assert load_file(path / FILE)
