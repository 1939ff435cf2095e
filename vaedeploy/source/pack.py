"""Packs 2x2 latents into the channels of one, which some diffusion models see instead of the VAE's own latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Packing = Literal["channel, row, column", "row, column, channel"]
"""The order of packed channels, the fastest index last: packed channel 4c + 2r + s, or (2r + s)C + c."""


def pack(latent: Tensor, packing: Packing) -> Tensor:
    """latent: (B, C, 2h, 2w) -> (B, 4C, h, w)."""
    from torch.nn import functional as F

    packed = F.pixel_unshuffle(latent, 2)
    return packed if packing == "channel, row, column" else _turned(packed, packed.shape[1] // 4, 4)


def unpack(packed: Tensor, packing: Packing) -> Tensor:
    """packed: (B, 4C, h, w) -> (B, C, 2h, 2w)."""
    from torch.nn import functional as F

    if packing == "row, column, channel":
        packed = _turned(packed, 4, packed.shape[1] // 4)
    return F.pixel_shuffle(packed, 2)


def _turned(packed: Tensor, first: int, second: int) -> Tensor:
    """The same with its ``first`` x ``second`` channels in transposed order."""
    batch, _, height, width = packed.shape
    return packed.reshape(batch, first, second, height, width).transpose(1, 2).reshape(packed.shape)
