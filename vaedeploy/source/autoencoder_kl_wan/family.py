"""``AutoencoderKLWan``, ``AutoencoderKLQwenImage`` and ``AutoencoderKLQwenImage21`` as families of VAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source.autoencoder_kl_wan.config import QwenImage, QwenImage21, Wan
from vaedeploy.source.autoencoder_kl_wan.names import diffusers_name
from vaedeploy.source.family import OWN_MODULES, Family, LatentShape, check_colors, read_fields
from vaedeploy.source.statement import Statement, config_statement

if TYPE_CHECKING:
    from torch import Tensor, nn


A = TypeVar("A", Wan, QwenImage, QwenImage21)


class _OneFrame(Family[A]):
    architecture: type[A]

    def read(self, raw: Mapping[str, Any]) -> A:
        architecture = read_fields(raw, self.architecture)
        wan = architecture.wan
        check_colors(wan.in_channels, wan.out_channels, wan.patch_size or 1)
        if architecture.attn_scales:
            # Its encoder passes a cache of frames to attention blocks, which take none (diffusers 0.42.1).
            raise WeightsError(
                f"has attn_scales {architecture.attn_scales}, with which diffusers' class fails. {OWN_MODULES}"
            )
        return architecture

    def latent(self, architecture: A) -> LatentShape:
        wan = architecture.wan
        return LatentShape(wan.z_dim, wan.factor, image_channels=wan.in_channels // (wan.patch_size or 1) ** 2)

    def statement(self, raw: Mapping[str, Any], architecture: A, tensors: Mapping[str, Tensor], by: str) -> Statement:
        if raw.get("latents_mean") is None and raw.get("latents_std") is None:
            return Statement(by, None, None)
        # diffusers' pipelines compute (z - latents_mean) / latents_std for these classes, and read no other field.
        return config_statement({**raw, "scaling_factor": 1.0, "shift_factor": None}, by)

    def blank(self, architecture: A) -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

        return _built(AutoencoderKLWan, architecture.wan)

    def halves(self, module: Any, architecture: A) -> tuple[nn.Module, nn.Module]:
        from vaedeploy.source.autoencoder_kl_wan.modules import decoder, encoder

        patch = architecture.wan.patch_size or 1
        return encoder(module, patch), decoder(module, patch)

    def diffusers_name(self, name: str, architecture: A) -> str:
        return diffusers_name(name, architecture.num_res_blocks)


class WanFamily(_OneFrame[Wan]):
    """The VAEs of Wan 2.1 and 2.2, and of models that use them for images: one frame."""

    class_name = Wan.class_name
    architecture = Wan


class QwenImageFamily(_OneFrame[QwenImage]):
    """The VAE of Qwen-Image, Qwen-Image-Edit, Krea 2, and with opacity that of Qwen-Image-Layered: one frame."""

    class_name = QwenImage.class_name
    architecture = QwenImage


class QwenImage21Family(_OneFrame[QwenImage21]):
    """The VAE of Qwen-Image 2.1, whose images have a fourth channel of opacity."""

    class_name = QwenImage21.class_name
    architecture = QwenImage21

    def blank(self, architecture: QwenImage21) -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_kl_qwenimage21 import AutoencoderKLQwenImage21

        return _built(AutoencoderKLQwenImage21, architecture)


def _built(kind: Any, architecture: Wan) -> nn.Module:
    fields = msgspec.structs.asdict(architecture)
    # The classes add lists to some of their arguments.
    vae: nn.Module = kind(**{name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()})
    return vae
