"""``AutoencoderKLHunyuanImage`` as a family of VAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source.autoencoder_kl_hunyuanimage.config import Architecture
from vaedeploy.source.autoencoder_kl_hunyuanimage.names import diffusers_name
from vaedeploy.source.family import Family, LatentShape, check_colors, read_fields

if TYPE_CHECKING:
    from torch import nn


class AutoencoderKLHunyuanImageFamily(Family[Architecture]):
    """The VAE of HunyuanImage 2.1."""

    class_name = Architecture.class_name

    def read(self, raw: Mapping[str, Any]) -> Architecture:
        architecture = read_fields(raw, Architecture)
        check_colors(architecture.in_channels, architecture.out_channels)
        most = 1 << (len(architecture.block_out_channels) - 1)
        if architecture.spatial_compression_ratio > most:
            raise WeightsError(
                f"has a spatial_compression_ratio of {architecture.spatial_compression_ratio} and "
                f"{len(architecture.block_out_channels)} block_out_channels, with which it can be {most} at most"
            )
        return architecture

    def latent(self, architecture: Architecture) -> LatentShape:
        channels, factor = architecture.latent_channels, architecture.spatial_compression_ratio
        return LatentShape(channels, factor, image_channels=architecture.in_channels)

    def blank(self, architecture: Architecture) -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_kl_hunyuanimage import AutoencoderKLHunyuanImage

        vae: nn.Module = AutoencoderKLHunyuanImage(**msgspec.structs.asdict(architecture))
        return vae

    def halves(self, module: Any, architecture: Architecture) -> tuple[nn.Module, nn.Module]:
        from vaedeploy.source.halves import Decoder, Encoder

        return Encoder(module.encoder, None), Decoder(module.decoder)

    def diffusers_name(self, name: str, architecture: Architecture) -> str:
        resampling = architecture.spatial_compression_ratio.bit_length() - 1
        return diffusers_name(name, architecture.layers_per_block, resampling)
