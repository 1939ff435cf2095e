"""VAEs as files: tensors as diffusers and as CompVis name them, in each kind of file, and what a load says of them."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vaedeploy.errors import InputError
from vaedeploy.source import Preset, get_preset, load_reference, presets
from vaedeploy.source import preset as preset_module
from vaedeploy.source.autoencoder_kl.config import Architecture
from vaedeploy.source.network import random_tensors

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
MORE = "They fit no preset. A VAE of another shape loads from a diffusers folder with its config.json: --vae FOLDER"
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
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"encoder\.down_blocks\.(\d)\.attentions\.(\d)", r"encoder.down.\1.attn.\2"),
        (r"decoder\.up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"decoder.up.{blocks - 1 - int(m[1])}.attn.{m[2]}"),
        (r"(attn[_.]\d)\.group_norm", r"\1.norm"),
        (r"(attn[_.]\d)\.to_out\.0", r"\1.proj_out"),
        (r"(attn[_.]\d)\.to_([qkv])", r"\1.\2"),
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


def exported_compvis(tensors: dict[str, Tensor], blocks: int = 4) -> dict[str, Tensor]:
    """CompVis' names as diffusers' own script wrote them in 2023: attentions keep diffusers' names and shapes."""
    new = {".q.": ".to_q.", ".k.": ".to_k.", ".v.": ".to_v.", ".proj_out.": ".to_out.0."}
    exported = {}
    for name, tensor in compvis(tensors, blocks).items():
        is_matrix = ".attn" in name and tensor.ndim == 4
        for old, renamed in new.items() if ".attn" in name else ():
            name = name.replace(old, renamed)
        exported[name] = tensor[:, :, 0, 0].contiguous() if is_matrix else tensor
    return exported


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


def write_parameters(tensors: dict[str, Tensor], path: Path) -> Path:
    """As ``torch.save(dict(module.named_parameters()))`` does."""
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}, path)
    return path


def write_requiring_grad(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save({name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}, path)
    return path


def write_legacy_parameters(tensors: dict[str, Tensor], path: Path) -> Path:
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"params": [0]}]}
    torch.save({"optimizer": optimizer, "model": parameters}, path, _use_new_zipfile_serialization=False)
    return path


def write_wrapped(tensors: dict[str, Tensor], path: Path) -> Path:
    """As a trainer with DistributedDataParallel does."""
    torch.save({"model": {"state_dict": {f"module.{n}": t for n, t in tensors.items()}}, "epoch": 3}, path)
    return path


def write_views(tensors: dict[str, Tensor], path: Path) -> Path:
    """Every tensor a part of one storage, and transposed in it."""
    flat = torch.cat([tensor.transpose(0, -1).reshape(-1) for tensor in tensors.values()])
    parts = flat.split([tensor.numel() for tensor in tensors.values()])
    views = {
        name: part.view(tensor.transpose(0, -1).shape).transpose(0, -1)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }
    torch.save(views, path)
    return path


def write_compressed(tensors: dict[str, Tensor], path: Path) -> Path:
    """An archive that was unpacked and packed again, by another program than PyTorch."""
    torch.save(tensors, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class ModelCheckpoint:
    """Stands for Lightning's class of that name, which its checkpoints name as a key."""


def write_lightning(tensors: dict[str, Tensor], path: Path) -> Path:
    """As PyTorch Lightning 1.x does: classes and objects of its own, numpy scalars, and what Python can pickle."""
    callbacks = {ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "best": np.float64(0.25), "dir": Path("a")}}
    settings = argparse.Namespace(lr=np.float32(1e-4), when=dt.datetime(2023, 1, 1), betas={0.9, 0.99})
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.ones(3)}}, "param_groups": [{"params": [0]}]}
    content = {"state_dict": OrderedDict(tensors), "callbacks": callbacks, "hyper_parameters": settings}
    torch.save({**content, "optimizer_states": [optimizer], "lr_schedulers": [ModelCheckpoint()]}, path)
    return path


def write_legacy_ckpt(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=False)
    return path


NAMINGS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "diffusers": dict,
    "old-diffusers": old_attention,
    "compvis": compvis,
    "compvis-exported": exported_compvis,
    "compvis-training": lambda tensors: training_leftovers(compvis(tensors)),
    "compvis-full": lambda tensors: full_checkpoint(training_leftovers(compvis(tensors))),
    "diffusers-full": full_checkpoint,
}
WRITERS: dict[str, tuple[Callable[[dict[str, Tensor], Path], Path], str]] = {
    "safetensors": (write_safetensors, "vae.safetensors"),
    "ckpt": (write_ckpt, "vae.ckpt"),
    "flat-ckpt": (write_flat_ckpt, "vae.pt"),
    "legacy-ckpt": (write_legacy_ckpt, "vae.ckpt"),
    "parameters": (write_parameters, "vae.bin"),
    "requiring-grad": (write_requiring_grad, "vae.pth"),
    "legacy-parameters": (write_legacy_parameters, "vae.pt"),
    "wrapped": (write_wrapped, "vae.pt"),
    "views": (write_views, "vae.pt"),
    "lightning": (write_lightning, "vae.ckpt"),
    "safetensors-named-ckpt": (write_safetensors, "vae.ckpt"),
    "ckpt-named-safetensors": (write_ckpt, "vae.safetensors"),
}


def extend_presets(monkeypatch: pytest.MonkeyPatch, *more: Preset) -> None:
    extended = presets() | {preset.name: preset for preset in more}
    monkeypatch.setattr(preset_module, "_presets", lambda: extended)


def changed(architecture: Architecture, **changes: Any) -> dict[str, Tensor]:
    return random_tensors(msgspec.structs.replace(architecture, **changes), seed=0)
