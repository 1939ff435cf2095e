"""The config of diffusers' ``AutoencoderDC``."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from vaedeploy.source import family
from vaedeploy.source.family import Blocks, Channels, Counts, Widths

Scales = Annotated[tuple[tuple[int, ...], ...], msgspec.Meta(max_length=16)]


class Architecture(family.Architecture, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``AutoencoderDC``."""

    class_name: ClassVar[str] = "AutoencoderDC"

    in_channels: int = 3
    latent_channels: Channels = 32
    attention_head_dim: Channels = 32
    encoder_block_types: str | Blocks = "ResBlock"
    decoder_block_types: str | Blocks = "ResBlock"
    encoder_block_out_channels: Widths = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: Widths = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: Counts = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: Counts = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: Scales = ((), (), (), (5,), (5,), (5,))
    decoder_qkv_multiscales: Scales = ((), (), (), (5,), (5,), (5,))
    upsample_block_type: str = "pixel_shuffle"
    downsample_block_type: str = "pixel_unshuffle"
    decoder_norm_types: str | Blocks = "rms_norm"
    decoder_act_fns: str | Blocks = "silu"
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: str = "relu"
