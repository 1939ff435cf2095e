"""A small autoencoder in numpy, and the ways in which one may be wrong, for tests of what compares VAEs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.fft import dctn, idctn

from vaedeploy.values.latent import LatentSpec

Change = Callable[[np.ndarray], np.ndarray]

KEPT = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Coefficients of each 4x4 block's cosine transform that the latent has."""


SPEC = LatentSpec(channels=12, factor=4, scale=1.0, sampled=False)


def same(array: np.ndarray) -> np.ndarray:
    return array


@dataclass(frozen=True)
class Codec:
    """The lowest cosine coefficients of 4x4 blocks, with a spread of about 1: 12 channels.

    encoded, decoded: what is done to a latent after the encoder and before the decoder. painted: what is done to the
    picture after it, in levels.
    """

    encoded: Change = same
    decoded: Change = same
    painted: Change = same
    latent: LatentSpec = SPEC

    def encode(self, image: np.ndarray) -> np.ndarray:
        pixels = (image if image.ndim == 4 else image[None]).astype(np.float64) / 127.5 - 1
        batch, height, width, _ = pixels.shape
        blocks = pixels.reshape(batch, height // 4, 4, width // 4, 4, 3).transpose(0, 1, 3, 5, 2, 4)
        found = dctn(blocks, axes=(4, 5), norm="ortho")
        latent = np.concatenate([found[..., y, x] for y, x in KEPT], axis=3).transpose(0, 3, 1, 2)
        return self.encoded(latent / 2).astype(np.float32)

    def decode(self, latent: np.ndarray) -> np.ndarray:
        values = self.decoded(latent.astype(np.float64)).transpose(0, 2, 3, 1) * 2
        batch, height, width, _ = values.shape
        blocks = np.zeros((batch, height, width, 3, 4, 4))
        for n, (y, x) in enumerate(KEPT):
            blocks[..., y, x] = values[..., 3 * n : 3 * n + 3]
        pixels = idctn(blocks, axes=(4, 5), norm="ortho").transpose(0, 1, 4, 2, 5, 3)
        levels = (pixels.reshape(batch, height * 4, width * 4, 3) + 1) * 127.5
        return np.rint(self.painted(levels)).clip(0, 255).astype(np.uint8)
