"""``AsymmetricAutoencoderKL`` as a family of VAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source.asymmetric_autoencoder_kl.config import Architecture
from vaedeploy.source.family import OWN_MODULES, Family, LatentShape, check_colors, read_fields

if TYPE_CHECKING:
    from torch import nn


class AsymmetricFamily(Family[Architecture]):
    """The larger decoders for inpainting with Stable Diffusion 1.5, which decode without a mask here."""

    class_name = Architecture.class_name

    def read(self, raw: Mapping[str, Any]) -> Architecture:
        architecture = read_fields(raw, Architecture)
        check_colors(architecture.in_channels, architecture.out_channels)
        down, up = len(architecture.down_block_out_channels), len(architecture.up_block_out_channels)
        if down != up:
            raise WeightsError(
                f"has {down} blocks that make images smaller and {up} that make them larger, so it decodes to another "
                f"size than it encodes. {OWN_MODULES}"
            )
        return architecture

    def latent(self, architecture: Architecture) -> LatentShape:
        factor = 1 << (len(architecture.down_block_out_channels) - 1)
        return LatentShape(architecture.latent_channels, factor, image_channels=architecture.in_channels)

    def blank(self, architecture: Architecture) -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_asym_kl import AsymmetricAutoencoderKL

        vae: nn.Module = AsymmetricAutoencoderKL(**msgspec.structs.asdict(architecture))
        return vae

    def halves(self, module: Any, architecture: Architecture) -> tuple[nn.Module, nn.Module]:
        from vaedeploy.source.halves import Decoder, Encoder

        del module.decoder.condition_encoder  # used only with a mask
        return Encoder(module.encoder, module.quant_conv), Decoder(module.decoder, module.post_quant_conv)
