"""Names of ``AutoencoderKL``'s tensors: CompVis', those of old diffusers versions and those of today's."""

from __future__ import annotations

import re

OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))$")
"""Name of an attention's tensor in diffusers before version 0.14."""

NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

COMPVIS_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
"""CompVis' name for a layer of an attention -> diffusers'. Files that diffusers' own export script wrote in 2023 mix
some of diffusers' names into CompVis'.
"""

BLOCK = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(block|attn|downsample|upsample)\.(.+)")

MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block|attn)_(\d+)\.(.+)")

LAST_NORM = re.compile(r"(encoder|decoder)\.norm_out\.")


def diffusers_name(name: str, blocks: int) -> str:
    """The name that today's diffusers has for a tensor that has any of the three names.

    blocks: number of blocks of the decoder, which CompVis counts from the image and diffusers from the latent.
    """
    if match := BLOCK.fullmatch(name):
        stack, number, kind, layer = match[1], int(match[2]), match[3], match[4]
        if stack == "decoder.up":
            number = blocks - 1 - number
        if number < 0:
            return name
        place = f"{stack}_blocks.{number}."
        if kind in ("downsample", "upsample"):
            return f"{place}{kind}rs.0.{layer}"
        index, _, layer = layer.partition(".")
        return f"{place}resnets.{index}.{_resnet(layer)}" if kind == "block" else f"{place}{_attention(index, layer)}"
    if match := MIDDLE.fullmatch(name):
        place, number, layer = f"{match[1]}.mid_block.", int(match[3]) - 1, match[4]
        return place + (f"resnets.{number}.{_resnet(layer)}" if match[2] == "block" else _attention(number, layer))
    name = LAST_NORM.sub(r"\1.conv_norm_out.", name)
    return OLD_ATTENTION.sub(lambda match: match[1] + NEW_ATTENTION[match[2]] + match[3], name)


def _resnet(layer: str) -> str:
    return re.sub(r"^nin_shortcut\b", "conv_shortcut", layer)


def _attention(number: int | str, layer: str) -> str:
    first, _, rest = layer.partition(".")
    return f"attentions.{number}.{COMPVIS_ATTENTION.get(first, NEW_ATTENTION.get(first, first))}.{rest}"
