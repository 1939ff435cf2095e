"""AutoencoderKLKVAE: configs that its class takes and a bundle cannot, and a class that states no scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import message_of
from family_cases import CASES

from vaedeploy.errors import ContractError, WeightsError
from vaedeploy.source import load_reference
from vaedeploy.source.families import FAMILIES

CASE = CASES["AutoencoderKLKVAE"]


def saved(path: Path, **changes: Any) -> Path:
    """A folder that the class saved, with other fields in its config.json."""
    config = CASE.folder(path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"channels": 4}, "has channels 4; they must be a multiple of 32"),
        ({"double_z": False}, "has double_z false; it must be true: half of what the encoder gives is "),
        ({"in_channels": 5}, "has 5 channels in and 5 out; both must be 3 (RGB) or 4 (RGBA)"),
    ],
)
def test_configs_that_cannot_be_loaded(changes: dict[str, Any], fault: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, **changes)
    assert message_of(WeightsError, folder, scale=1).startswith(f"{folder / 'config.json'} {fault}")


def test_no_scale_is_made_up(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    assert message_of(ContractError, folder).endswith(
        " does not state the scale of the latents. Give it: --scale NUMBER (scale= in Python)"
    )
    latent = load_reference(folder, scale=0.5).latent
    assert (latent.scale, latent.shift) == (0.5, 0.0)


def test_a_scale_that_a_config_states_holds(tmp_path: Path) -> None:
    latent = load_reference(saved(tmp_path, scaling_factor=0.5, shift_factor=0.25)).latent
    assert (latent.scale, latent.shift) == (0.5, 0.25)


def test_what_only_tiling_reads_makes_no_other_architecture() -> None:
    one, other = (FAMILIES[CASE.class_name].read({**CASE.config(), "sample_size": size}) for size in (32, [64, 64]))
    assert one == other


def test_weights_without_their_config_say_what_to_give(tmp_path: Path) -> None:
    file = saved(tmp_path) / "diffusion_pytorch_model.safetensors"
    assert message_of(WeightsError, file, scale=1) == (
        f"{file} holds no VAE that is known without its config.json, but config.json is beside it: "
        f"vaedeploy export {tmp_path}"
    )
    (tmp_path / "config.json").unlink()
    assert message_of(WeightsError, file, scale=1).endswith(
        ". A VAE that is none of the presets' loads from a diffusers folder with its config.json: --vae FOLDER"
    )
