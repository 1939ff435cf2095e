"""What each half of a VAE takes and gives: the names, shapes and dtypes that every stage agrees on.

    >>> decoder = Interface("decoder", LatentSpec(channels=4, factor=8, scale=0.18215))
    >>> decoder.takes(1, 512, 768)
    Tensor(shape=(1, 4, 64, 96), dtype=dtype('float32'))
    >>> {name: tensor.shape for name, tensor in decoder.gives(1, 512, 768).items()}
    {'image': (1, 3, 512, 768), 'image_u8': (1, 512, 768, 3), 'finite': (1,)}

Sizes are always those of the image, in pixels; the latent's sides are smaller by ``latent.factor``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vaedeploy.values.kinds import ImageInput, Part
from vaedeploy.values.latent import LatentSpec

FLOAT32, UINT8, BOOL = np.dtype(np.float32), np.dtype(np.uint8), np.dtype(np.bool_)


@dataclass(frozen=True)
class Tensor:
    """The shape and dtype of a contiguous array."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @cached_property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Interface:
    """The input and the outputs of one half.

    Encoder: takes ``image`` float32 (B, N, H, W) in [-1, 1], or ``image_u8`` uint8 (B, H, W, N) where ``image_input``
    is "uint8"; gives ``latent_mean`` and ``latent_std``, or ``latent`` where the contract is not ``sampled``, float32
    (B, C, h, w), as the diffusion model sees them.

    Decoder: takes ``latent``; gives ``image`` float32 (B, N, H, W), not clamped, ``image_u8`` uint8 (B, H, W, N), and
    ``finite`` bool (B,), which is False for an item with NaN or infinity in its image.

    N is the contract's ``image_channels``.
    """

    part: Part
    latent: LatentSpec
    image_input: ImageInput = "float"

    @property
    def input(self) -> str:
        """The name of the one input."""
        if self.part == "decoder":
            return "latent"
        return "image_u8" if self.image_input == "uint8" else "image"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of all outputs. The first is what the next stage reads: the latent's mean, or the float image."""
        if self.part == "decoder":
            return ("image", "image_u8", "finite")
        return ("latent_mean", "latent_std") if self.latent.sampled else ("latent",)

    def takes(self, batch: int, height: int, width: int) -> Tensor:
        """The input for ``batch`` images of ``height`` x ``width`` pixels."""
        return self._tensor(self.input, batch, height, width)

    def gives(self, batch: int, height: int, width: int) -> dict[str, Tensor]:
        """Every output by name, for ``batch`` images of ``height`` x ``width`` pixels."""
        return {name: self._tensor(name, batch, height, width) for name in self.outputs}

    def accepts(self, given: Tensor) -> bool:
        """Whether ``given`` has the input's dtype, axes and channels, and is not empty. ``latent.sizes`` says whether
        height and width are multiples of the factor.
        """
        wanted = self.takes(1, self.latent.factor, self.latent.factor)
        if given.dtype != wanted.dtype or len(given.shape) != len(wanted.shape) or 0 in given.shape:
            return False
        axis = channel_axis(self.input)
        return given.shape[axis] == wanted.shape[axis]

    def pixels(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, height, width) in pixels, for an input of that shape."""
        height, width = (shape[axis] for axis in spatial_axes(self.input))
        factor = self.latent.factor if self.part == "decoder" else 1
        return shape[0], height * factor, width * factor

    def _tensor(self, name: str, batch: int, height: int, width: int) -> Tensor:
        if name == "image":
            return Tensor((batch, self.latent.image_channels, height, width), FLOAT32)
        if name == "image_u8":
            return Tensor((batch, height, width, self.latent.image_channels), UINT8)
        if name == "finite":
            return Tensor((batch,), BOOL)
        factor = self.latent.factor
        return Tensor((batch, self.latent.channels, height // factor, width // factor), FLOAT32)


def channel_axis(name: str) -> int:
    """Which axis of the array ``name`` has its channels."""
    return 3 if name == "image_u8" else 1


def spatial_axes(name: str) -> tuple[int, int]:
    """Which axes of the array ``name`` are its height and width."""
    return (1, 2) if name == "image_u8" else (2, 3)
