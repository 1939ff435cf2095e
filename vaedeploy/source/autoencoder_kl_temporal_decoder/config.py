"""The config of diffusers' ``AutoencoderKLTemporalDecoder``."""

from __future__ import annotations

from typing import ClassVar

from vaedeploy.source import family
from vaedeploy.source.family import Blocks, Channels, Layers, Widths


class Architecture(family.Architecture, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``AutoencoderKLTemporalDecoder``, without its latent contract."""

    class_name: ClassVar[str] = "AutoencoderKLTemporalDecoder"
    unshaped: ClassVar[frozenset[str]] = frozenset({"sample_size"})

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: Blocks = ("DownEncoderBlock2D",)
    block_out_channels: Widths = (64,)
    layers_per_block: Layers = 1
    latent_channels: Channels = 4
    sample_size: int | tuple[int, ...] = 32
