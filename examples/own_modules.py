"""Two PyTorch modules of one's own as a verified bundle.

    python examples/own_modules.py mine
    vaedeploy inspect mine

The modules give and take raw latents. The export traces them with a dynamic batch, height and width, puts scale and
shift into the graphs, and compares both graphs with the modules in float64.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import vaedeploy as vd

CHANNELS = 8


class Encoder(nn.Module):
    """(B, 3, H, W) float in [-1, 1] -> (B, 8, H/4, W/4). With a distribution, it would return mean and std."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(16, CHANNELS, 3, stride=2, padding=1)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


class Decoder(nn.Module):
    """(B, 8, h, w) -> (B, 3, 4h, 4w) float in [-1, 1], not clamped."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(CHANNELS, 16, 3, padding=1),
            nn.SiLU(),
            nn.Upsample(scale_factor=4),
            nn.Conv2d(16, 3, 3, padding=1),
        )

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.layers(latent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    options = parser.parse_args()
    torch.manual_seed(0)  # in the place of training
    # A diffusion model is trained on latents with a mean of about 0 and a standard deviation of about 1. These modules'
    # latents of photographs have -0.02 and 0.089, which is 1 / 11.2. The export warns if the deviation is far from 1.
    latent = vd.LatentSpec(channels=CHANNELS, factor=4, scale=11.2, shift=-0.02, sampled=False)
    own = vd.Reference(encoder=Encoder().eval(), decoder=Decoder().eval(), latent=latent, name="mine")
    bundle = vd.export_vae(own, out=options.out)
    print(f"{bundle.path}: verified, {bundle.manifest.vae.identity}")


if __name__ == "__main__":
    main()
