"""Small seeded VAEs as plain PyTorch modules, which vaedeploy treats like any user's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.reference import Reference


class TinyEncoder(nn.Module):
    """image (B, N, H, W) -> (mean, std), each (B, channels, H/4, W/4); only the mean if not sampled. N is
    ``image_channels``.
    """

    def __init__(self, channels: int, sampled: bool = True, image_channels: int = 3) -> None:
        super().__init__()
        self.sampled = sampled
        self.body = nn.Sequential(
            nn.Conv2d(image_channels, 8, 3, padding=1),
            nn.GroupNorm(4, 8, eps=1e-6),
            nn.SiLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.GroupNorm(2, 8, eps=1e-6),
            nn.SiLU(),
            nn.Conv2d(8, 2 * channels, 3, stride=2, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        mean, logarithm = self.body(image).chunk(2, 1)
        return (mean, torch.exp(0.5 * logarithm)) if self.sampled else mean


class TinyDecoder(nn.Module):
    """latent (B, channels, h, w) -> image (B, image_channels, 4h, 4w)."""

    def __init__(self, channels: int, image_channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.GroupNorm(4, 8, eps=1e-6),
            nn.SiLU(),
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.GroupNorm(2, 8, eps=1e-6),
            nn.SiLU(),
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            nn.Conv2d(8, image_channels, 3, padding=1),
        )

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.body(latent)
        return image


def tiny_reference(
    channels: int = 4,
    *,
    sampled: bool = True,
    scale: float | tuple[float, ...] = 0.3,
    shift: float | tuple[float, ...] = 0.5,
    seed: int = 0,
    image_channels: int = 3,
) -> Reference:
    """A VAE of factor 4 whose every parameter is drawn, normalisation included; its image stays around [-1, 1]."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder, decoder = TinyEncoder(channels, sampled, image_channels), TinyDecoder(channels, image_channels)
        for module in (encoder, decoder):
            for name, parameter in module.named_parameters():
                if parameter.dim() == 1:
                    nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
    for module in (encoder, decoder):
        module.eval().requires_grad_(False)
    latent = LatentSpec(channels, 4, scale, shift, sampled, image_channels)
    return Reference(encoder, decoder, latent, name="tiny")


def flat_reference(seed: int = 0, image_channels: int = 3) -> Reference:
    """A VAE of two convolutions and factor 1, for quick tests that do not depend on the architecture."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder, decoder = nn.Conv2d(image_channels, 4, 1), nn.Conv2d(4, image_channels, 1)
    latent = LatentSpec(channels=4, factor=1, scale=1.0, sampled=False, image_channels=image_channels)
    return Reference(encoder, decoder, latent, name="flat")
