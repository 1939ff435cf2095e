"""VAEs as files: tensors as diffusers and as CompVis name them, in each kind of file, and what a load says of them."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vaedeploy.errors import InputError
from vaedeploy.source import Preset, get_preset, load_reference, presets
from vaedeploy.source import preset as preset_module
from vaedeploy.source.autoencoder_kl.config import Architecture
from vaedeploy.source.autoencoder_kl.modules import random_tensors

DEMO = get_preset("demo")
CONTRACT: Any = {"scale": DEMO.latent.scale, "shift": DEMO.latent.shift}
"""Given with the demo architecture wherever a test is not about the contract: that of the preset, stated or not."""
DEMO_CONFIG: Any = {"scaling_factor": DEMO.latent.scale, "shift_factor": DEMO.latent.shift}
"""The same, as a config.json states it."""

TINY = Architecture(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(8, 16),
    norm_num_groups=4,
    latent_channels=4,
)
MORE = "Give weights of this architecture, or the preset that they belong to: vaedeploy presets"
FITS_NOT = "does not fit preset demo (architecture demo):"


def folder(path: Path, config: dict[str, Any] | None, weights: dict[str, Tensor], name: str = "") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    save_file(weights, path / (name or "diffusion_pytorch_model.safetensors"))
    return path


def config_of(architecture: Architecture, **changes: Any) -> dict[str, Any]:
    fields = msgspec.to_builtins(architecture)
    return {"_class_name": "AutoencoderKL", "_diffusers_version": "0.4.2", **fields, **changes}


def message_of(kind: type[InputError], vae: str | Path, weights: str | Path | None = None, **contract: Any) -> str:
    with pytest.raises(kind) as caught:
        load_reference(vae, weights, **contract)
    assert type(caught.value) is kind
    assert caught.value.exit_code == 2
    return str(caught.value)


def compvis(tensors: dict[str, Tensor], blocks: int = 4) -> dict[str, Tensor]:
    """The same weights under the names, and in the shapes, of CompVis' latent-diffusion."""
    rules: list[tuple[str, Any]] = [
        (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
        (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
        (r"decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.up.{blocks - 1 - int(m[1])}.block.{m[2]}"),
        (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{blocks - 1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
    ]
    renamed = {}
    for name, tensor in tensors.items():
        is_matrix = ".attentions." in name and tensor.ndim == 2
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor[:, :, None, None] if is_matrix else tensor
    assert len(renamed) == len(tensors)
    return renamed


def old_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as diffusers named them before version 0.14, and sd-vae-ft-mse still does."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile(r"(attentions\.0\.)(to_q|to_k|to_v|to_out\.0)\.")
    return {pattern.sub(lambda m: f"{m[1]}{old[m[2]]}.", name): tensor for name, tensor in tensors.items()}


def full_checkpoint(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    inside = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    others = {"model.diffusion_model.out.2.weight": torch.ones(4, 4), "cond_stage_model.ids": torch.arange(77)}
    return {**others, **inside, "encoder.conv_in.weight": torch.full((1,), torch.nan)}


def training_leftovers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "loss.discriminator.main.0.weight": torch.ones(3), "model_ema.decay": torch.ones(1)}


def write_safetensors(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def write_ckpt(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save({"state_dict": OrderedDict(tensors), "global_step": 840000, "callbacks": {}}, path)
    return path


def write_flat_ckpt(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save(tensors, path)
    return path


def write_legacy_ckpt(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=False)
    return path


NAMINGS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "diffusers": dict,
    "old-diffusers": old_attention,
    "compvis": compvis,
    "compvis-training": lambda tensors: training_leftovers(compvis(tensors)),
    "compvis-full": lambda tensors: full_checkpoint(training_leftovers(compvis(tensors))),
    "diffusers-full": full_checkpoint,
}
WRITERS: dict[str, tuple[Callable[[dict[str, Tensor], Path], Path], str]] = {
    "safetensors": (write_safetensors, "vae.safetensors"),
    "ckpt": (write_ckpt, "vae.ckpt"),
    "flat-ckpt": (write_flat_ckpt, "vae.pt"),
    "legacy-ckpt": (write_legacy_ckpt, "vae.ckpt"),
    "safetensors-named-ckpt": (write_safetensors, "vae.ckpt"),
    "ckpt-named-safetensors": (write_ckpt, "vae.safetensors"),
}


def extend_presets(monkeypatch: pytest.MonkeyPatch, *more: Preset) -> None:
    extended = presets() | {preset.name: preset for preset in more}
    monkeypatch.setattr(preset_module, "_presets", lambda: extended)


def changed(architecture: Architecture, **changes: Any) -> dict[str, Tensor]:
    return random_tensors(msgspec.structs.replace(architecture, **changes), seed=0)
