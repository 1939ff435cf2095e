"""``AutoencoderKLTemporalDecoder`` as a family of VAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vaedeploy.source.autoencoder_kl_temporal_decoder.config import Architecture
from vaedeploy.source.family import Family, LatentShape, check_colors, read_fields

if TYPE_CHECKING:
    from torch import nn


class TemporalDecoderFamily(Family[Architecture]):
    """The VAE of Stable Video Diffusion: each image is a video of one frame."""

    class_name = Architecture.class_name

    def read(self, raw: Mapping[str, Any]) -> Architecture:
        architecture = read_fields(raw, Architecture)
        check_colors(architecture.in_channels, architecture.out_channels)
        return architecture

    def latent(self, architecture: Architecture) -> LatentShape:
        factor = 1 << (len(architecture.block_out_channels) - 1)
        return LatentShape(architecture.latent_channels, factor, image_channels=architecture.in_channels)

    def blank(self, architecture: Architecture) -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder

        vae: nn.Module = AutoencoderKLTemporalDecoder(**msgspec.structs.asdict(architecture))
        return vae

    def halves(self, module: Any, architecture: Architecture) -> tuple[nn.Module, nn.Module]:
        from vaedeploy.source.autoencoder_kl_temporal_decoder.modules import decoder
        from vaedeploy.source.halves import Decoder, Encoder

        return Encoder(module.encoder, module.quant_conv), Decoder(decoder(module.decoder))
