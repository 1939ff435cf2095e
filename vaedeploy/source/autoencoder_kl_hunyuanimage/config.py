"""The config of diffusers' ``AutoencoderKLHunyuanImage``."""

from __future__ import annotations

from typing import ClassVar, Literal

from vaedeploy.source import family
from vaedeploy.source.family import Channels, Layers, Widths


class Architecture(family.Architecture, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``AutoencoderKLHunyuanImage``, which has few defaults."""

    class_name: ClassVar[str] = "AutoencoderKLHunyuanImage"
    unshaped: ClassVar[frozenset[str]] = frozenset({"sample_size"})  # only tiling reads it

    in_channels: int
    out_channels: int
    latent_channels: Channels
    block_out_channels: Widths
    layers_per_block: Layers
    spatial_compression_ratio: Literal[1, 2, 4, 8, 16, 32, 64, 128]
    sample_size: int
    downsample_match_channel: bool = True
    upsample_match_channel: bool = True
