"""Decoding in tiles whose borders are blended, as diffusers and others do for large pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

OVERLAP = 4
"""A tile overlaps the next one by one part in so many, as in diffusers."""


def decode_in_tiles(decode: Callable[[Array], Array], latent: Array, tile: int = 64, factor: int = 8) -> Array:
    """The image (B, 3, H, W) that ``decode`` makes of ``latent`` (B, C, h, w) tile by tile.

    tile: side of a tile, in latent pixels. Each is blended linearly with those above it and on its left, over the
    pixels in which they overlap.
    """
    step, blend = tile - tile // OVERLAP, tile // OVERLAP * factor
    columns = range(0, latent.shape[3], step)
    above: list[Array] = []
    rows = []
    for top in range(0, latent.shape[2], step):
        row: list[Array] = []
        for number, left in enumerate(columns):
            made = decode(np.ascontiguousarray(latent[:, :, top : top + tile, left : left + tile]))
            if above:
                _blend(above[number], made, blend, axis=2)
            if row:
                _blend(row[-1], made, blend, axis=3)
            row.append(made)
        rows.append(np.concatenate([made[:, :, : step * factor, : step * factor] for made in row], axis=3))
        above = row
    return np.concatenate(rows, axis=2)


def _blend(before: Array, after: Array, extent: int, axis: int) -> None:
    """Let the first pixels of ``after`` begin as the last ones of ``before``, in place."""
    extent = min(extent, before.shape[axis], after.shape[axis])
    share = (np.arange(extent, dtype=np.float32) / extent).reshape(-1, *[1] * (3 - axis))
    ends, begins = (np.moveaxis(image, axis, 0) for image in (before, after))
    share = share.reshape(-1, 1, 1, 1)
    begins[:extent] = ends[-extent:] * (1 - share) + begins[:extent] * share
