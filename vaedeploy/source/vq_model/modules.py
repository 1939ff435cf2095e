"""The decoder of diffusers' ``VQModel`` with norm_type "spatial", as a plain module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vq_model import VQModel


class Decoder(nn.Module):
    """Decoder: raw latent (B, C, h, w) -> image (B, N, h*f, w*f), not clamped. Its norms read the latent too."""

    def __init__(self, vae: VQModel) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(latent), latent)
        return image
