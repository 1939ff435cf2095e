"""Names of its tensors, then and now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vaedeploy.source.autoencoder_kl.config import Architecture

if TYPE_CHECKING:
    from torch import Tensor


COMPVIS_NAME = re.compile(r"(encoder\.(down|mid)|decoder\.(up|mid))\.")

OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))$")

NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _from_compvis(tensors: Mapping[str, Tensor], architecture: Architecture) -> dict[str, str]:
    """CompVis name of each of diffusers' names, by diffusers' own conversion.

    That conversion drops what it does not know in silence. So it is given stand-ins, each a number spread over its
    tensor's shape: the numbers that come out say which tensors it took, and for what.
    """
    import torch
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    names = list(tensors)
    stand_ins = {n: torch.tensor(float(i)).expand(tensors[n].shape) for i, n in enumerate(names)}
    blocks = {"down_block_types": architecture.down_block_types, "up_block_types": architecture.up_block_types}
    converted = convert_ldm_vae_checkpoint(stand_ins, blocks)  # type: ignore[no-untyped-call]
    return {new: names[int(v[(0,) * v.ndim])] for new, v in converted.items() if v is not None and v.numel()}


def _modern(name: str) -> str:
    """The name that diffusers has now for a tensor, for names of its attention before version 0.14."""
    return OLD_ATTENTION.sub(lambda found: found[1] + NEW_ATTENTION[found[2]] + found[3], name)


def _shape(tensor: Tensor, expected: tuple[int, ...]) -> tuple[int, ...]:
    """The tensor's shape, without sides of 1 at the end: old attentions were 1x1 convolutions, now matrices."""
    shape = tuple(tensor.shape)
    while len(shape) > len(expected) and shape[-1] == 1:
        shape = shape[:-1]
    return shape
