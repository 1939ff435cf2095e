"""``AutoencoderKLFlux2`` as a family of VAEs: latents packed 2x2, and a latent contract in the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source.autoencoder_kl.names import diffusers_name
from vaedeploy.source.autoencoder_kl_flux2.config import Architecture
from vaedeploy.source.family import Family, LatentShape, check_colors, read_fields
from vaedeploy.source.statement import Statement

if TYPE_CHECKING:
    from torch import Tensor, nn

MEAN, VARIANCE = "bn.running_mean", "bn.running_var"


class AutoencoderKLFlux2Family(Family[Architecture]):
    """The VAE of FLUX.2, ERNIE-Image, Ideogram 4 and FIBO 2."""

    class_name = Architecture.class_name
    contract_tensors = frozenset({MEAN, VARIANCE})

    def read(self, raw: Mapping[str, Any]) -> Architecture:
        architecture = read_fields(raw, Architecture)
        check_colors(architecture.in_channels, architecture.out_channels)
        if architecture.patch_size != (2, 2):
            raise WeightsError(
                f"has a patch_size of {list(architecture.patch_size)}; what can be packed is [2, 2], as the pipelines "
                "of diffusers do"
            )
        widths, decoder_widths = architecture.block_out_channels, architecture.decoder_block_out_channels
        if decoder_widths is not None and len(decoder_widths) != len(widths):
            raise WeightsError(
                f"has {len(widths)} block_out_channels and {len(decoder_widths)} decoder_block_out_channels; "
                "both halves must have the same number of blocks"
            )
        return architecture

    def latent(self, architecture: Architecture) -> LatentShape:
        # Every block but the last halves the sides, and packing halves them once more.
        factor = 1 << len(architecture.block_out_channels)
        return LatentShape(4 * architecture.latent_channels, factor, image_channels=architecture.in_channels)

    def statement(
        self, raw: Mapping[str, Any], architecture: Architecture, tensors: Mapping[str, Tensor], by: str
    ) -> Statement:
        missing = sorted(self.contract_tensors - tensors.keys())
        if missing:
            fault = (
                f"{by} belongs to weights without {' and '.join(missing)}, the statistics of latents that state their "
                "scale and shift. Files that were written for another program may lack them: take those of the "
                "model's own repository"
            )
            return Statement(by, None, None, fault)
        shift = tensors[MEAN].double().tolist()
        variance = (tensors[VARIANCE].double() + architecture.batch_norm_eps).tolist()
        if min(variance) <= 0:
            fault = f"{by} belongs to weights whose {VARIANCE} has {min(variance)} as a variance; one must be above 0"
            return Statement(by, None, None, fault)
        return Statement(by, tuple(v**-0.5 for v in variance), tuple(shift))

    def blank(self, architecture: Architecture) -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2

        arguments = msgspec.structs.asdict(architecture)
        del arguments["packing"]
        vae: nn.Module = AutoencoderKLFlux2(**arguments)
        return vae

    def halves(self, module: Any, architecture: Architecture) -> tuple[nn.Module, nn.Module]:
        from vaedeploy.source.autoencoder_kl_flux2.modules import PackedDecoder, PackedEncoder

        return (
            PackedEncoder(module.encoder, module.quant_conv, architecture.packing),
            PackedDecoder(module.decoder, module.post_quant_conv, architecture.packing),
        )

    def diffusers_name(self, name: str, architecture: Architecture) -> str:
        # BFL's own code has the quant convolutions within the halves, and the rest named as CompVis does.
        name = re.sub(r"^(?:encoder\.(?=quant_conv\.)|decoder\.(?=post_quant_conv\.))", "", name)
        return diffusers_name(name, len(architecture.block_out_channels))
