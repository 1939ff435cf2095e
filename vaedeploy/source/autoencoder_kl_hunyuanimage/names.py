"""Names of ``AutoencoderKLHunyuanImage``'s tensors in its original code, which ComfyUI's files have as well."""

from __future__ import annotations

import re

BLOCK = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(?:block\.(\d+)|(?:down|up)sample)\.(.+)")

MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block|attn)_(\d+)\.(.+)")

ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "proj"}
"""The original name for a layer of an attention -> diffusers'."""


def diffusers_name(name: str, layers: int, resampling: int) -> str:
    """The name that diffusers has for a tensor that has either name.

    diffusers numbers blocks and the resamplings between their stages in one list. layers: blocks in a stage of the
    encoder; the decoder's have one more. resampling: how many stages end with a resampling; these come first.
    """
    if match := BLOCK.fullmatch(name):
        stack, stage, block, layer = match[1], int(match[2]), match[3], match[4]
        blocks = layers + (stack == "decoder.up")
        number = stage * blocks + min(stage, resampling) + (blocks if block is None else int(block))
        return f"{stack}_blocks.{number}.{layer}"
    if match := MIDDLE.fullmatch(name):
        place, number, layer = f"{match[1]}.mid_block.", int(match[3]) - 1, match[4]
        if match[2] == "block":
            return f"{place}resnets.{number}.{layer}"
        first, _, rest = layer.partition(".")
        return f"{place}attentions.{number}.{ATTENTION.get(first, first)}.{rest}"
    return name
