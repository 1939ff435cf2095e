"""The two halves of a VAE as plain modules, for families whose classes have the usual structure.

They have none of diffusers' tiling, slicing and randomness.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LOGVAR_RANGE = (-30.0, 20.0)
"""Bounds to which diffusers' DiagonalGaussianDistribution clamps a log variance."""


class Encoder(nn.Module):
    """Encoder: image (B, N, H, W) in [-1, 1] -> (mean, std) of the raw latent, each (B, C, H/f, W/f)."""

    def __init__(self, encoder: nn.Module, quant_conv: nn.Module | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.quant_conv = quant_conv

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.encoder(image)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = torch.chunk(moments, 2, dim=1)
        return mean, torch.exp(0.5 * torch.clamp(logvar, *LOGVAR_RANGE))


class PlainEncoder(nn.Module):
    """Encoder without a distribution: image (B, N, H, W) in [-1, 1] -> raw latent (B, C, H/f, W/f)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        latent: Tensor = self.encoder(image)
        return latent


class Decoder(nn.Module):
    """Decoder: raw latent (B, C, h, w) -> image (B, N, h*f, w*f), not clamped."""

    def __init__(self, decoder: nn.Module, post_quant_conv: nn.Module | None = None) -> None:
        super().__init__()
        self.post_quant_conv = post_quant_conv
        self.decoder = decoder

    def forward(self, latent: Tensor) -> Tensor:
        if self.post_quant_conv is not None:
            latent = self.post_quant_conv(latent)
        image: Tensor = self.decoder(latent)
        return image
