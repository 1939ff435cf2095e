"""The config of diffusers' ``AutoencoderTiny``."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from vaedeploy.source import family
from vaedeploy.source.family import Channels, Counts, Widths


class Architecture(family.Architecture, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``AutoencoderTiny``."""

    class_name: ClassVar[str] = "AutoencoderTiny"
    # How latents are stored in a PNG, and a field that the class copies for pipelines.
    ignored: ClassVar[frozenset[str]] = frozenset({"latent_magnitude", "latent_shift", "block_out_channels"})

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: Widths = (64,) * 4
    decoder_block_out_channels: Widths = (64,) * 4
    act_fn: str = "relu"
    upsample_fn: str = "nearest"
    latent_channels: Channels = 4
    upsampling_scaling_factor: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    num_encoder_blocks: Counts = (1, 3, 3, 3)
    num_decoder_blocks: Counts = (3, 3, 3, 1)
