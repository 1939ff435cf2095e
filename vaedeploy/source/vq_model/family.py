"""``VQModel`` as a family of VAEs: MoVQ, of Kandinsky 2.1, 2.2 and 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source.family import OWN_MODULES, Family, LatentShape, check_colors, read_fields
from vaedeploy.source.statement import Statement
from vaedeploy.source.vq_model.config import Architecture

if TYPE_CHECKING:
    from torch import Tensor, nn


class VQModelFamily(Family[Architecture]):
    """The MoVQ of Kandinsky. Other models of the class look latents up in a codebook, and are refused."""

    class_name = Architecture.class_name

    def read(self, raw: Mapping[str, Any]) -> Architecture:
        architecture = read_fields(raw, Architecture)
        check_colors(architecture.in_channels, architecture.out_channels)
        if architecture.norm_type != "spatial" or architecture.lookup_from_codebook:
            raise WeightsError(
                f"has norm_type {architecture.norm_type!r} and lookup_from_codebook "
                f"{architecture.lookup_from_codebook}; of this class, only MoVQ can be loaded (norm_type 'spatial', no "
                f"look-up), because models of other kinds are decoded from a codebook. {OWN_MODULES}"
            )
        return architecture

    def latent(self, architecture: Architecture) -> LatentShape:
        channels = architecture.vq_embed_dim or architecture.latent_channels
        factor = 1 << (len(architecture.block_out_channels) - 1)
        return LatentShape(channels, factor, sampled=False, image_channels=architecture.in_channels)

    def statement(
        self, raw: Mapping[str, Any], architecture: Architecture, tensors: Mapping[str, Tensor], by: str
    ) -> Statement:
        # Kandinsky's pipelines do not read the config's scaling_factor, which says 0.18215.
        return Statement(by, 1.0, 0.0)

    def blank(self, architecture: Architecture) -> nn.Module:
        from diffusers.models.autoencoders.vq_model import VQModel

        vae: nn.Module = VQModel(**msgspec.structs.asdict(architecture))
        return vae

    def halves(self, module: Any, architecture: Architecture) -> tuple[nn.Module, nn.Module]:
        from torch import nn

        from vaedeploy.source.halves import PlainEncoder
        from vaedeploy.source.vq_model.modules import Decoder

        return PlainEncoder(nn.Sequential(module.encoder, module.quant_conv)), Decoder(module)
