"""``PaellaVQModel`` as a family of VAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vaedeploy.errors import ContractError
from vaedeploy.source.family import Family, LatentShape, check_colors, read_fields
from vaedeploy.source.paella_vq_model.config import Architecture
from vaedeploy.source.statement import Statement, number

if TYPE_CHECKING:
    from torch import Tensor, nn


class PaellaFamily(Family[Architecture]):
    """The VQ-VAE of Stable Cascade and Würstchen, decoded without its codebook, as their pipelines do."""

    class_name = Architecture.class_name

    def read(self, raw: Mapping[str, Any]) -> Architecture:
        architecture = read_fields(raw, Architecture)
        check_colors(architecture.in_channels, architecture.out_channels)
        return architecture

    def latent(self, architecture: Architecture) -> LatentShape:
        factor = architecture.up_down_scale_factor << (architecture.levels - 1)
        return LatentShape(architecture.latent_channels, factor, sampled=False, image_channels=architecture.in_channels)

    def statement(
        self, raw: Mapping[str, Any], architecture: Architecture, tensors: Mapping[str, Tensor], by: str
    ) -> Statement:
        # The pipelines multiply by the factor before they decode, where those of other classes divide.
        factor = number(raw, "scale_factor", by)
        if factor == 0:
            raise ContractError(f"{by}: scale_factor is 0; dividing by it is impossible")
        return Statement(by, None, None) if factor is None else Statement(by, 1 / factor, 0.0)

    def blank(self, architecture: Architecture) -> nn.Module:
        from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

        vae: nn.Module = PaellaVQModel(**msgspec.structs.asdict(architecture))
        return vae

    def halves(self, module: Any, architecture: Architecture) -> tuple[nn.Module, nn.Module]:
        from torch import nn

        from vaedeploy.source.halves import Decoder, PlainEncoder
        from vaedeploy.source.paella_vq_model.modules import FromSigned, ToSigned

        encoder = PlainEncoder(nn.Sequential(FromSigned(), module.in_block, module.down_blocks))
        return encoder, Decoder(nn.Sequential(module.up_blocks, module.out_block, ToSigned()))
