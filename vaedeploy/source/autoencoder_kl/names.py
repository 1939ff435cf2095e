"""Names of ``AutoencoderKL``'s tensors: those of CompVis, of old versions of diffusers and of today's diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vaedeploy.source.autoencoder_kl.config import Architecture

if TYPE_CHECKING:
    from torch import Tensor


COMPVIS_NAME = re.compile(r"(encoder\.(down|mid)|decoder\.(up|mid))\.")
"""Beginning of a tensor's name that only CompVis' checkpoints have."""

OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))$")
"""Name of an attention's tensor in diffusers before version 0.14."""

NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def names_from_compvis(tensors: Mapping[str, Tensor], architecture: Architecture) -> dict[str, str]:
    """CompVis' name for each of diffusers' names, from diffusers' own conversion.

    The conversion silently drops tensors that it does not know. So it is given stand-ins: each has the shape of a
    tensor and is filled with the tensor's number. The numbers that come out say which tensors it took, and for what.
    """
    import torch
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    names = list(tensors)
    stand_ins = {n: torch.tensor(float(i)).expand(tensors[n].shape) for i, n in enumerate(names)}
    blocks = {"down_block_types": architecture.down_block_types, "up_block_types": architecture.up_block_types}
    converted = convert_ldm_vae_checkpoint(stand_ins, blocks)  # type: ignore[no-untyped-call]
    return {new: names[int(v[(0,) * v.ndim])] for new, v in converted.items() if v is not None and v.numel()}


def current_name(name: str) -> str:
    """The name that today's diffusers has for a tensor. Those of attentions were different before version 0.14."""
    return OLD_ATTENTION.sub(lambda match: match[1] + NEW_ATTENTION[match[2]] + match[3], name)


def comparable_shape(tensor: Tensor, expected: tuple[int, ...]) -> tuple[int, ...]:
    """The tensor's shape, less axes of length 1 at its end, down to as many axes as ``expected`` has.

    Attentions are matrices today, but were 1x1 convolutions in old checkpoints.
    """
    shape = tuple(tensor.shape)
    while len(shape) > len(expected) and shape[-1] == 1:
        shape = shape[:-1]
    return shape
