"""What a file is that holds no VAE, and a checkpoint that says it is another model's than the preset."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from checkpoints import DEMO, compvis, config_of, extend_presets, folder, message_of, write_safetensors
from safetensors.torch import save_file
from torch import Tensor

from vaedeploy.errors import ContractError, WeightsError
from vaedeploy.source import get_preset, load_reference
from vaedeploy.source.network import random_tensors

TINY = "a tiny autoencoder (TAESD)"
HALF = (
    "a half of a tiny autoencoder (TAESD), whose files must be named alike but for the half, as in "
    "taesd_encoder.safetensors and taesd_decoder.safetensors"
)
FILES = {
    "a LoRA": ["lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.lora_up.weight"],
    "the transformer of FLUX": ["double_blocks.0.img_attn.proj.weight", "img_in.weight"],
    "the transformer of SD3": ["model.diffusion_model.joint_blocks.0.x_block.attn.proj.bias"],
    "a checkpoint without its VAE": ["model.diffusion_model.out.2.weight", "cond_stage_model.ids"],
    "a diffusion transformer": ["transformer_blocks.0.attn.to_q.weight"],
    "a UNet": ["time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight"],
    "a text encoder": ["text_model.embeddings.position_embedding.weight"],
    "a ControlNet": ["control_model.input_blocks.0.0.weight"],
    TINY: ["encoder.layers.0.weight", "decoder.layers.2.weight"],
    HALF: ["0.weight", "3.conv.0.bias"],
    "a deep-compression autoencoder (DC-AE)": ["encoder.project_in.conv.weight"],
    "the VAE of Wan or Qwen-Image": ["encoder.middle.0.residual.0.gamma", "decoder.upsamples.0.residual.2.weight"],
}


@pytest.mark.parametrize("kind", FILES)
def test_file_without_a_vae_is_told_as_what_it_is(tmp_path: Path, kind: str) -> None:
    file = write_safetensors({name: torch.zeros(2) for name in FILES[kind]}, tmp_path / "model.safetensors")
    # A file alone with some of an architecture's tensors is told what it lacks of them.
    for arguments in (("mse840k", file), *([] if kind == TINY else [(file,)])):
        assert message_of(WeightsError, *arguments) == (
            f"{file} holds no VAE that can be loaded: it looks like {kind}. "
            "Give the VAE's own weights, or a checkpoint with them in it"
        )


def test_weights_of_another_preset_say_which(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = write_safetensors(tensors, tmp_path / "vae.safetensors")
    assert message_of(WeightsError, "flux1", file).endswith(
        ". They are of architecture demo: give the weights alone (--vae PATH), or the preset that they belong to: "
        "demo, demo-mse"
    )


def test_weights_of_another_family_than_the_presets_say_which(tmp_path: Path) -> None:
    file = write_safetensors(random_tensors(get_preset("taesd").config, 0), tmp_path / "taesd.safetensors")
    message = message_of(WeightsError, "demo", file)
    assert message.startswith(f"{file} does not fit preset demo (architecture demo): ")
    assert message.endswith(
        ". They are of architecture tiny: give the weights alone (--vae PATH), or the preset that they belong to: "
        "taesd, taesdxl"
    )


def test_folder_whose_config_is_of_other_weights(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    other = msgspec.structs.replace(DEMO.config, layers_per_block=1)
    path = folder(tmp_path / "own", config_of(DEMO.config), random_tensors(other, 0))
    assert message_of(WeightsError, path).endswith(
        ". Give the config.json that belongs to these weights, or the weights that belong to it"
    )


@pytest.mark.parametrize(
    ("names", "metadata", "states"),
    [
        (["conditioner.embedders.0.x"], {}, "a checkpoint of SDXL, since it has conditioner.embedders.*"),
        (
            [],
            {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"},
            "a checkpoint of SDXL, as its modelspec.architecture says",
        ),
    ],
)
def test_checkpoint_of_another_model_than_the_preset(
    tmp_path: Path,
    tensors: dict[str, Tensor],
    names: list[str],
    metadata: dict[str, str],
    states: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # SDXL's preset, in the architecture of a small VAE.
    sdxl = msgspec.structs.replace(get_preset("sdxl"), config=DEMO.config)
    small = msgspec.structs.replace(
        DEMO, name="small", latent=msgspec.structs.replace(DEMO.latent, scale=2.0, shift=0.0)
    )
    extend_presets(monkeypatch, sdxl, small)
    inside = {f"first_stage_model.{name}": tensor.contiguous() for name, tensor in compvis(tensors).items()}
    file = tmp_path / "checkpoint.safetensors"
    save_file({**inside, **{name: torch.zeros(1) for name in names}}, file, metadata)
    assert message_of(ContractError, "small", file) == (
        f"the latent scale is stated in two ways: preset small says 2.0, {file} ({states}) says 0.13025. "
        "Say which holds: --scale NUMBER (scale= in Python)"
    )
    for scale in (2.0, 0.13025):
        assert load_reference("small", file, scale=scale).latent.scale == scale
    # What a checkpoint is of fills in nothing that is not stated.
    assert message_of(ContractError, file).startswith(f"{file} does not state the scale of the latents.")


def test_checkpoint_of_the_presets_own_model(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    sdxl = msgspec.structs.replace(get_preset("sdxl"), config=DEMO.config, sha256=None)
    extend_presets(monkeypatch, sdxl)
    file = tmp_path / "checkpoint.safetensors"
    inside = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    save_file({**inside, "conditioner.embedders.0.x": torch.zeros(1)}, file)
    assert load_reference("sdxl", file).latent.scale == 0.13025
