"""The config of diffusers' ``AutoencoderKL``."""

from __future__ import annotations

from typing import Annotated

import msgspec

Channels = Annotated[int, msgspec.Meta(ge=1, le=65536)]

Layers = Annotated[int, msgspec.Meta(ge=1, le=64)]
"""A bound far from all that is published: building what a damaged config asks for could take for ever."""

Blocks = Annotated[tuple[str, ...], msgspec.Meta(max_length=16)]


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``AutoencoderKL``, without its latent contract.

    The defaults are those of diffusers for a key that is missing from a ``config.json``.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: Blocks = ("DownEncoderBlock2D",)
    up_block_types: Blocks = ("UpDecoderBlock2D",)
    block_out_channels: Annotated[tuple[Channels, ...], msgspec.Meta(min_length=1, max_length=16)] = (64,)
    layers_per_block: Layers = 1
    act_fn: str = "silu"
    latent_channels: Channels = 4
    norm_num_groups: Channels = 32
    sample_size: int | tuple[int, ...] = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def factor(self) -> int:
        """Image pixels per latent element along each side. Every block but the last halves the sides."""
        return 1 << (len(self.block_out_channels) - 1)

    def differences(self, other: Architecture) -> list[str]:
        """Names of the fields in which ``other`` is a different network.

        ``sample_size`` is not one of them, because only tiling reads it.
        """
        return [
            name
            for name in self.__struct_fields__
            if name != "sample_size" and getattr(self, name) != getattr(other, name)
        ]
