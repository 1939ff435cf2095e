"""Names of ``AutoencoderDC``'s tensors in its original code, whose attentions join queries, keys and values."""

from __future__ import annotations

import re

WRAPPERS = re.compile(r"(?<=\.)(?:main|op_list)\.")
"""Modules of the original code that only hold others: wrappers with a shortcut, and lists."""

STAGE = re.compile(r"(encoder|decoder)\.stages\.(\d+\.\d+)\.(.+)")

STAGES = {"encoder": "encoder.down_blocks", "decoder": "decoder.up_blocks"}

LAYERS = {
    "conv1.conv": "conv1",
    "conv2.conv": "conv2",
    "conv2.norm": "norm",
    "conv": "conv",  # makes the image smaller with a stride
    "conv.conv": "conv",  # is followed by a shuffle of pixels, or preceded by an interpolation
    "context_module.proj.conv": "attn.to_out",
    "context_module.proj.norm": "attn.norm_out",
    "local_module.inverted_conv.conv": "conv_out.conv_inverted",
    "local_module.depth_conv.conv": "conv_out.conv_depth",
    "local_module.point_conv.conv": "conv_out.conv_point",
    "local_module.point_conv.norm": "conv_out.norm",
}
"""A layer of a stage: the original name -> diffusers'."""

SCALE = re.compile(r"context_module\.aggreg\.(\d+)\.([01])")

SCALES = {"0": "proj_in", "1": "proj_out"}

QKV = "context_module.qkv.conv"

ENDS = {
    "encoder.project_out.0.conv": "encoder.conv_out",
    "decoder.project_in.conv": "decoder.conv_in",
    "decoder.project_out.0": "decoder.norm_out",
}

IMAGES = {
    "encoder.project_in.conv": "encoder.conv_in",
    "encoder.project_in.conv.conv": "encoder.conv_in",
    "decoder.project_out.2.conv": "decoder.conv_out",
    "decoder.project_out.2.conv.conv": "decoder.conv_out",
}
"""The convolutions that take and give images."""


def diffusers_name(name: str, resampling: tuple[str, ...]) -> str | tuple[str, ...]:
    """Diffusers' name of a tensor, or its three names for one that the original code has joined.

    resampling: which of "encoder.conv_in" and "decoder.conv_out" change the image's size, because their half has no
    layers at full size.
    """
    layer, _, kind = WRAPPERS.sub("", name).rpartition(".")
    if (end := ENDS.get(layer)) is not None:
        return f"{end}.{kind}"
    if (image := IMAGES.get(layer)) is not None:
        return f"{image}.conv.{kind}" if image in resampling else f"{image}.{kind}"
    if (match := STAGE.fullmatch(layer)) is None:
        return name
    place, rest = f"{STAGES[match[1]]}.{match[2]}", match[3]
    if rest == QKV:
        return tuple(f"{place}.attn.to_{x}.{kind}" for x in "qkv")
    if scale := SCALE.fullmatch(rest):
        return f"{place}.attn.to_qkv_multiscale.{scale[1]}.{SCALES[scale[2]]}.{kind}"
    return f"{place}.{LAYERS[rest]}.{kind}" if rest in LAYERS else name
