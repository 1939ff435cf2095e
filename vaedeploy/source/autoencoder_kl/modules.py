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
from vaedeploy.system.text import shown

LOGVAR_RANGE = (-30.0, 20.0)
"""Bounds to which diffusers' DiagonalGaussianDistribution clamps a log variance."""


class Encoder(nn.Module):
    """Encoder: image (B, 3, H, W) in [-1, 1] -> (mean, std) of the raw latent, each (B, C, H/f, W/f)."""

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
    """Decoder: raw latent (B, C, h, w) -> image (B, 3, h*f, w*f), not clamped."""

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
    """Build both halves, frozen and in eval mode.

    weights: exactly the tensors that ``tensor_shapes`` names, in float32.
    """
    vae = _blank(architecture)
    vae.load_state_dict(dict(weights), strict=True, assign=True)
    vae.eval().requires_grad_(False)
    return Encoder(vae).eval(), Decoder(vae).eval()


@functools.cache
def tensor_shapes(architecture: Architecture) -> Mapping[str, tuple[int, ...]]:
    """Shape of every tensor by its name in diffusers.

    Raises WeightsError for an architecture that diffusers cannot build.
    """
    return {name: tuple(tensor.shape) for name, tensor in _blank(architecture).state_dict().items()}


def random_tensors(architecture: Architecture, seed: int) -> dict[str, Tensor]:
    """Draw float32 weights for every tensor from ``seed``, independent of torch's global random state.

    Kernels are scaled so that they preserve the magnitude of activations. Normalisation weights (around 1) and all
    biases are drawn as well: at their defaults of 1 and 0, a mistake in how they are handled would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in tensor_shapes(architecture).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        if name.endswith("bias"):
            weights[name] = 0.1 * noise
        elif len(shape) == 1:
            weights[name] = 1.0 + 0.1 * noise
        else:
            weights[name] = noise / math.sqrt(math.prod(shape[1:]))
    return weights


def _blank(architecture: Architecture) -> AutoencoderKL:
    # On the meta device, tensors take no memory, and no time to draw initial values that are replaced at once.
    try:
        with torch.device("meta"):
            vae: AutoencoderKL = AutoencoderKL(**msgspec.structs.asdict(architecture))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"diffusers cannot build an AutoencoderKL of this config: {shown(str(error))}") from error
    return vae
