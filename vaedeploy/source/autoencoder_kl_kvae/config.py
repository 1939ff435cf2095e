"""The config of diffusers' ``AutoencoderKLKVAE``."""

from __future__ import annotations

from typing import ClassVar

from vaedeploy.source import family
from vaedeploy.source.family import Channels, Layers, Widths


class Architecture(family.Architecture, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``AutoencoderKLKVAE``. ch_mult: the factor of ``channels`` in each block."""

    class_name: ClassVar[str] = "AutoencoderKLKVAE"
    ignored: ClassVar[frozenset[str]] = frozenset({"sample_size"})  # only tiling reads it

    in_channels: int = 3
    channels: Channels = 128
    num_enc_blocks: Layers = 2
    num_dec_blocks: Layers = 2
    z_channels: Channels = 16
    double_z: bool = True
    ch_mult: Widths = (1, 2, 4, 8)
