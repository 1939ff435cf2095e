"""``AutoencoderDC`` as a family of VAEs: few and deep latents, at factors from 32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source.autoencoder_dc.config import Architecture
from vaedeploy.source.autoencoder_dc.names import diffusers_name
from vaedeploy.source.family import Family, LatentShape, check_colors, read_fields

if TYPE_CHECKING:
    from torch import nn


NAMED = ("encoder_block_types", "decoder_block_types", "decoder_norm_types", "decoder_act_fns")

STRIDED = "conv"


class AutoencoderDCFamily(Family[Architecture]):
    """The deep-compression autoencoders of SANA and its kin."""

    class_name = Architecture.class_name

    def read(self, raw: Mapping[str, Any]) -> Architecture:
        architecture = read_fields(raw, Architecture)
        check_colors(architecture.in_channels, architecture.in_channels)
        encoder, decoder = architecture.encoder_block_out_channels, architecture.decoder_block_out_channels
        if len(encoder) != len(decoder):
            raise WeightsError(
                f"has {len(encoder)} encoder_block_out_channels and {len(decoder)} decoder_block_out_channels; "
                "both halves must have the same number of blocks"
            )
        # One name for all blocks means the same as that name for each.
        blocks = {
            name: (value,) * len(encoder) for name in NAMED if isinstance(value := getattr(architecture, name), str)
        }
        # The class takes any unknown value as a strided convolution, and published configs say "Conv".
        downsample = architecture.downsample_block_type
        if downsample.lower() == STRIDED:
            downsample = STRIDED
        return msgspec.structs.replace(architecture, downsample_block_type=downsample, **blocks)

    def latent(self, architecture: Architecture) -> LatentShape:
        factor = 1 << (len(architecture.encoder_block_out_channels) - 1)
        return LatentShape(architecture.latent_channels, factor, sampled=False, image_channels=architecture.in_channels)

    def blank(self, architecture: Architecture) -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

        vae: nn.Module = AutoencoderDC(**msgspec.structs.asdict(architecture))
        return vae

    def halves(self, module: Any, architecture: Architecture) -> tuple[nn.Module, nn.Module]:
        from vaedeploy.source.halves import Decoder, PlainEncoder

        return PlainEncoder(module.encoder), Decoder(module.decoder)

    def diffusers_name(self, name: str, architecture: Architecture) -> str | tuple[str, ...]:
        layers = {
            "encoder.conv_in": architecture.encoder_layers_per_block,
            "decoder.conv_out": architecture.decoder_layers_per_block,
        }
        return diffusers_name(name, tuple(image for image, counts in layers.items() if counts[0] == 0))
