"""``AutoencoderKL`` as a family of VAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vaedeploy.source.autoencoder_kl.config import Architecture
from vaedeploy.source.autoencoder_kl.names import diffusers_name
from vaedeploy.source.family import Family, LatentShape, check_colors, read_fields

if TYPE_CHECKING:
    from torch import nn


class AutoencoderKLFamily(Family[Architecture]):
    """The VAE of Stable Diffusion 1 to 3, SDXL, FLUX.1, and of many that followed."""

    class_name = Architecture.class_name

    def read(self, raw: Mapping[str, Any]) -> Architecture:
        architecture = read_fields(raw, Architecture)
        check_colors(architecture.in_channels, architecture.out_channels)
        return architecture

    def latent(self, architecture: Architecture) -> LatentShape:
        return LatentShape(architecture.latent_channels, architecture.factor, image_channels=architecture.in_channels)

    def blank(self, architecture: Architecture) -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        vae: nn.Module = AutoencoderKL(**msgspec.structs.asdict(architecture))
        return vae

    def halves(self, module: Any, architecture: Architecture) -> tuple[nn.Module, nn.Module]:
        from vaedeploy.source.halves import Decoder, Encoder

        return Encoder(module.encoder, module.quant_conv), Decoder(module.decoder, module.post_quant_conv)

    def diffusers_name(self, name: str, architecture: Architecture) -> str:
        return diffusers_name(name, len(architecture.block_out_channels))
