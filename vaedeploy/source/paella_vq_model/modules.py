"""What stands before the encoder and after the decoder of diffusers' ``PaellaVQModel``, whose images are in [0, 1]."""

from __future__ import annotations

from torch import Tensor, nn


class FromSigned(nn.Module):
    """image in [-1, 1] -> image in [0, 1]."""

    def forward(self, image: Tensor) -> Tensor:
        return image * 0.5 + 0.5


class ToSigned(nn.Module):
    """image in [0, 1] -> image in [-1, 1]."""

    def forward(self, image: Tensor) -> Tensor:
        return image * 2.0 - 1.0
