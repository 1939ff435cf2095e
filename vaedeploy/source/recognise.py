"""What a file without the expected VAE holds, and which diffusion model a full checkpoint says it is of."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from vaedeploy.source.preset import Preset, get_preset

KINDS = (
    (r"lora_(up|down|A|B)\b|\.hada_w|\.lokr_w", "a LoRA"),
    (r"^control_model\.|^controlnet_", "a ControlNet"),
    (r"(^|\.)double_blocks\.\d", "the transformer of FLUX"),
    (r"(^|\.)joint_blocks\.\d", "the transformer of SD3"),
    (r"^model\.diffusion_model\.", "a checkpoint without its VAE"),
    (r"(^|\.)(single_)?transformer_blocks\.\d", "a diffusion transformer"),
    (r"^(time_embedding|time_embed|input_blocks)\.", "a UNet"),
    (r"(^|\.)text_model\.|(^|\.)transformer\.resblocks\.", "a text encoder"),
    (
        r"^\d+\.",
        "a half of a tiny autoencoder (TAESD), whose files must be named alike but for the half, as in "
        "taesd_encoder.safetensors and taesd_decoder.safetensors",
    ),
    (r"^(encoder|decoder)\.(layers\.|\d+\.)", "a tiny autoencoder (TAESD)"),
    (r"^(encoder|decoder)\.stages\.|^encoder\.project_in\.", "a deep-compression autoencoder (DC-AE)"),
    (r"^(encoder\.downsamples|decoder\.upsamples|encoder\.middle)\.", "the VAE of Wan or Qwen-Image"),
)
"""Patterns of tensor names, and what has them. The first match counts."""


@dataclass(frozen=True)
class Model:
    """A diffusion model that full checkpoints name as theirs.

    preset: the preset of its VAE. prefix: that of tensors that only its checkpoints have. architectures: how
    modelspec.architecture in their metadata may begin.
    """

    title: str
    preset: str
    prefix: str
    architectures: tuple[str, ...]


MODELS = (
    Model("SDXL", "sdxl", "conditioner.embedders.", ("stable-diffusion-xl",)),
    Model("Stable Diffusion 1 or 2", "sd15", "cond_stage_model.", ("stable-diffusion-v1", "stable-diffusion-v2")),
    Model("SD3", "sd3", "model.diffusion_model.joint_blocks.", ("stable-diffusion-3", "stable-diffusion-v3")),
    Model("FLUX.1", "flux1", "model.diffusion_model.double_blocks.", ("flux-1",)),
)


def kind_of(names: Collection[str]) -> str | None:
    """What kind of model has tensors of these names, in words; None if unknown."""
    return next((kind for pattern, kind in KINDS if any(re.search(pattern, name) for name in names)), None)


def stated_model(names: Collection[str], metadata: Mapping[str, str]) -> tuple[Preset, str] | None:
    """The VAE preset of the model that a checkpoint names as its own, and how it names it, in words."""
    said = metadata.get("modelspec.architecture", "").lower()
    for model in MODELS:
        if said.startswith(model.architectures):
            return get_preset(model.preset), f"a checkpoint of {model.title}, as its modelspec.architecture says"
    for model in MODELS:
        if any(name.startswith(model.prefix) for name in names):
            return get_preset(model.preset), f"a checkpoint of {model.title}, since it has {model.prefix}*"
    return None
