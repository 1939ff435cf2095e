"""diffusers' ``AutoencoderKL`` as two plain modules, without its tiling, slicing and randomness."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import msgspec
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from vaedeploy.errors import WeightsError
from vaedeploy.source.autoencoder_kl.config import Architecture

LOGVAR_RANGE = (-30.0, 20.0)
"""The bounds in which diffusers' DiagonalGaussianDistribution holds a log variance."""


class Encoder(nn.Module):
    """image (B, 3, H, W) in [-1, 1] -> (mean, std) of the raw latent, each (B, C, H/f, W/f)."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.encoder = vae.encoder
        self.quant_conv = vae.quant_conv

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.encoder(image)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = torch.chunk(moments, 2, dim=1)
        return mean, torch.exp(0.5 * torch.clamp(logvar, *LOGVAR_RANGE))


class Decoder(nn.Module):
    """raw latent (B, C, h, w) -> image (B, 3, h*f, w*f), not clamped."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder

    def forward(self, latent: Tensor) -> Tensor:
        if self.post_quant_conv is not None:
            latent = self.post_quant_conv(latent)
        image: Tensor = self.decoder(latent)
        return image


def build(architecture: Architecture, weights: Mapping[str, Tensor]) -> tuple[Encoder, Decoder]:
    """Both halves with ``weights``: exactly the float32 tensors that ``tensor_shapes`` names. Frozen, in eval mode."""
    vae = _blank(architecture)
    vae.load_state_dict(dict(weights), strict=True, assign=True)
    vae.eval().requires_grad_(False)
    return Encoder(vae).eval(), Decoder(vae).eval()


@functools.cache
def tensor_shapes(architecture: Architecture) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every tensor, under diffusers' names. Raises WeightsError for a config that cannot be built."""
    return {name: tuple(tensor.shape) for name, tensor in _blank(architecture).state_dict().items()}


def random_tensors(architecture: Architecture, seed: int) -> dict[str, Tensor]:
    """Seeded float32 weights for every tensor, independent of torch's global random state.

    Kernels are drawn so that they keep the size of what passes through them. Normalisation weights (around 1) and
    every bias are drawn as well: at their defaults of 1 and 0, a mistake in how they are handled would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, shape in tensor_shapes(architecture).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        if name.endswith("bias"):
            drawn[name] = 0.1 * noise
        elif len(shape) == 1:
            drawn[name] = 1.0 + 0.1 * noise
        else:
            drawn[name] = noise / math.sqrt(math.prod(shape[1:]))
    return drawn


def _blank(architecture: Architecture) -> AutoencoderKL:
    # Tensors of the meta device take neither memory nor the time to draw initial values that are replaced at once.
    try:
        with torch.device("meta"):
            vae: AutoencoderKL = AutoencoderKL(**msgspec.structs.asdict(architecture))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"diffusers cannot build an AutoencoderKL of this config: {error}") from error
    return vae
