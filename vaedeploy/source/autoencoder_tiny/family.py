"""``AutoencoderTiny`` as a family of VAEs: no distribution, and latents that are scaled already."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source.autoencoder_tiny.config import Architecture
from vaedeploy.source.family import Family, LatentShape, check_colors, read_fields
from vaedeploy.source.statement import Statement, number

if TYPE_CHECKING:
    from torch import Tensor, nn

ORIGINAL = re.compile(r"(?:taesd_)?(encoder|decoder)\.(\d+)\.(.+)")
"""A tensor's name in TAESD's own code, and in ComfyUI's files: the layer's number in a Sequential."""


class AutoencoderTinyFamily(Family[Architecture]):
    """TAESD and the like, which preview what a diffusion model is making; DreamLite's only VAE."""

    class_name = Architecture.class_name

    def read(self, raw: Mapping[str, Any]) -> Architecture:
        architecture = read_fields(raw, Architecture)
        check_colors(architecture.in_channels, architecture.out_channels)
        down = 1 << (len(architecture.encoder_block_out_channels) - 1)
        up = architecture.upsampling_scaling_factor ** (len(architecture.decoder_block_out_channels) - 1)
        if down != up:
            raise WeightsError(
                f"has an encoder that makes images {down} times smaller, and a decoder that makes latents {up} times "
                "larger; both factors must be the same"
            )
        return architecture

    def latent(self, architecture: Architecture) -> LatentShape:
        factor = 1 << (len(architecture.encoder_block_out_channels) - 1)
        return LatentShape(architecture.latent_channels, factor, sampled=False, image_channels=architecture.in_channels)

    def statement(
        self, raw: Mapping[str, Any], architecture: Architecture, tensors: Mapping[str, Tensor], by: str
    ) -> Statement:
        scale, shift = (number(raw, key, by) for key in ("scaling_factor", "shift_factor"))
        # It is trained on latents as the diffusion model sees them.
        return Statement(by, 1.0 if scale is None else scale, 0.0 if shift is None else shift)

    def blank(self, architecture: Architecture) -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

        vae: nn.Module = AutoencoderTiny(**msgspec.structs.asdict(architecture))
        return vae

    def halves(self, module: Any, architecture: Architecture) -> tuple[nn.Module, nn.Module]:
        from vaedeploy.source.halves import Decoder, PlainEncoder

        return PlainEncoder(module.encoder), Decoder(module.decoder)

    def diffusers_name(self, name: str, architecture: Architecture) -> str:
        match = ORIGINAL.fullmatch(name)
        if match is None:
            return name
        # The original decoder counts the clamp of its input as its first layer.
        number = int(match[2]) - (match[1] == "decoder")
        return f"{match[1]}.layers.{number}.{match[3]}"
