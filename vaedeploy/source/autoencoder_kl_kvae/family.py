"""``AutoencoderKLKVAE`` as a family of VAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source.autoencoder_kl_kvae.config import Architecture
from vaedeploy.source.family import Family, LatentShape, check_colors, read_fields

if TYPE_CHECKING:
    from torch import nn


class AutoencoderKLKVAEFamily(Family[Architecture]):
    """KVAE 2D of the Kandinsky lab. Neither its class nor a pipeline of diffusers states a scale."""

    class_name = Architecture.class_name

    def read(self, raw: Mapping[str, Any]) -> Architecture:
        architecture = read_fields(raw, Architecture)
        check_colors(architecture.in_channels, architecture.in_channels)
        if architecture.channels % 32:
            raise WeightsError(f"has channels {architecture.channels}; they must be a multiple of 32, for its norms")
        if not architecture.double_z:
            raise WeightsError(
                "has double_z false; it must be true: half of what the encoder gives is read as the log variance, and "
                "the other half would have too few channels for the decoder"
            )
        return architecture

    def latent(self, architecture: Architecture) -> LatentShape:
        factor = 1 << (len(architecture.ch_mult) - 1)
        return LatentShape(architecture.z_channels, factor, image_channels=architecture.in_channels)

    def blank(self, architecture: Architecture) -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_kl_kvae import AutoencoderKLKVAE

        vae: nn.Module = AutoencoderKLKVAE(**msgspec.structs.asdict(architecture))
        return vae

    def halves(self, module: Any, architecture: Architecture) -> tuple[nn.Module, nn.Module]:
        from vaedeploy.source.halves import Decoder, Encoder

        return Encoder(module.encoder, None), Decoder(module.decoder)
