"""Names of the tensors of Wan's VAE in Wan's own files, which ComfyUI's repacks of it and of Qwen-Image's keep."""

from __future__ import annotations

import re

PLACES = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    "encoder.conv1": "encoder.conv_in",
    "decoder.conv1": "decoder.conv_in",
}

HEADS = {"0": "norm_out", "2": "conv_out"}

MIDDLES = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}

RESIDUALS = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
"""A layer of a residual block: Wan's name -> diffusers'."""

PART = re.compile(r"(encoder|decoder)\.(head|middle)\.(\d+)(?:\.(.+))?")

FLAT = re.compile(r"(encoder\.down|decoder\.up)samples\.(\d+)\.(.+)")

NESTED = re.compile(r"(down|up)samples\.(\d+)\.(.+)")
"""What follows the number of a block in Wan 2.2's VAE."""


def diffusers_name(name: str, layers: int) -> str:
    """Diffusers' name of a tensor that Wan calls ``name``; any other name is returned unchanged.

    layers: residual blocks of each block of the encoder. The decoder's have one more.
    """
    layer, _, kind = name.rpartition(".")
    return f"{_layer(layer, layers)}.{kind}" if layer else name


def _layer(name: str, layers: int) -> str:
    if name in PLACES:
        return PLACES[name]
    if match := PART.fullmatch(name):
        half, part, number, rest = match.groups()
        if part == "head":
            return f"{half}.{HEADS.get(number, number)}"
        return f"{half}.mid_block.{MIDDLES.get(number, number)}.{RESIDUALS.get(rest, rest)}"
    if not (match := FLAT.fullmatch(name)):
        return name
    stack, number, rest = match[1], int(match[2]), match[3]
    if nested := NESTED.fullmatch(rest):
        # In Wan 2.2 each block holds its residual blocks, followed by the resampling.
        count = layers + (nested[1] == "up")
        inner, rest = int(nested[2]), nested[3]
        place = f"resnets.{inner}" if inner < count else f"{nested[1]}sampler"
        return f"{stack}_blocks.{number}.{place}.{RESIDUALS.get(rest, rest)}"
    if stack == "encoder.down":
        return f"{stack}_blocks.{number}.{RESIDUALS.get(rest, rest)}"
    block, inner = divmod(number, layers + 2)
    place = f"resnets.{inner}" if inner <= layers else "upsamplers.0"
    return f"{stack}_blocks.{block}.{place}.{RESIDUALS.get(rest, rest)}"
