"""The config of diffusers' ``AsymmetricAutoencoderKL``."""

from __future__ import annotations

from typing import ClassVar

from vaedeploy.source import family
from vaedeploy.source.family import Blocks, Channels, Layers, Widths


class Architecture(family.Architecture, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``AsymmetricAutoencoderKL``, without its latent contract."""

    class_name: ClassVar[str] = "AsymmetricAutoencoderKL"
    unshaped: ClassVar[frozenset[str]] = frozenset({"sample_size"})
    ignored: ClassVar[frozenset[str]] = frozenset({"block_out_channels"})  # a copy of up_block_out_channels

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: Blocks = ("DownEncoderBlock2D",)
    down_block_out_channels: Widths = (64,)
    layers_per_down_block: Layers = 1
    up_block_types: Blocks = ("UpDecoderBlock2D",)
    up_block_out_channels: Widths = (64,)
    layers_per_up_block: Layers = 1
    act_fn: str = "silu"
    latent_channels: Channels = 4
    norm_num_groups: Channels = 32
    sample_size: int | tuple[int, ...] = 32
