"""The config of diffusers' ``AutoencoderKL``."""

from __future__ import annotations

from typing import ClassVar

from vaedeploy.source import family
from vaedeploy.source.family import Blocks, Channels, Layers, Widths


class Architecture(family.Architecture, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``AutoencoderKL``, without its latent contract.

    The defaults are those of diffusers for a key that is missing from a ``config.json``.
    """

    class_name: ClassVar[str] = "AutoencoderKL"
    unshaped: ClassVar[frozenset[str]] = frozenset({"sample_size"})  # only tiling reads it

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: Blocks = ("DownEncoderBlock2D",)
    up_block_types: Blocks = ("UpDecoderBlock2D",)
    block_out_channels: Widths = (64,)
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
