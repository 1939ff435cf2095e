"""A VAE of RGBA images, compared with VAEs of RGB images."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaedeploy.images.opacity import on_white, with_opacity
from vaedeploy.runtime import VAE
from vaedeploy.values.latent import RGB, LatentSpec


class OnWhite:
    """A VAE of RGBA images as one of RGB images: it encodes them as opaque, and its images are seen in front of white.

    vae: the VAE, which the caller closes.
    """

    def __init__(self, vae: VAE) -> None:
        self._vae = vae

    @property
    def latent(self) -> LatentSpec:
        return self._vae.latent

    @property
    def backend(self) -> str:
        return self._vae.backend

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """image: (H, W, 3) or (B, H, W, 3) uint8."""
        return self._vae.encode(with_opacity(image))

    def decode(self, latent: NDArray[np.float32], *, output: Literal["uint8", "float"] = "uint8") -> NDArray[Any]:
        """Images (B, H, W, 3) uint8, or (B, 3, H, W) float32."""
        if output == "uint8":
            return on_white(self._vae.decode(latent))
        image = self._vae.decode(latent, output="float")
        share = (image[:, RGB:].clip(-1, 1) + 1) / 2  # NaN stays NaN
        return np.asarray(image[:, :RGB] * share + (1 - share), np.float32)
