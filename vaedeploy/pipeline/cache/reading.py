"""Reading the pictures of shards ahead of the encoder: those of one shard, then those of the next."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import ImageError
from vaedeploy.images.cache_format import CacheInfo
from vaedeploy.images.files import MOST_PIXELS, image_from_bytes
from vaedeploy.images.opacity import flattened, has_opacity, with_opacity
from vaedeploy.images.sizing import Fit, fitted
from vaedeploy.pipeline.cache.plan import Shard
from vaedeploy.pipeline.cache.sources import Picture
from vaedeploy.system.ahead import Ahead
from vaedeploy.values.latent import RGBA

AHEAD = 2 * MOST_PIXELS
"""The most pixels of the pictures that are read ahead, by their headers: 22 pictures of 12 megapixels. A pixel takes
about 10 bytes while its picture is decoded and resized. Two of the largest pictures fit.
"""

Pixels = NDArray[np.uint8]


class Reader:
    """Reads pictures and brings them to size, with as many threads as there are cores, while the encoder runs.

    What was read ahead for a shard is dropped if another one is asked for.
    """

    def __init__(self, info: CacheInfo, cores: int) -> None:
        self._ahead: Ahead[tuple[Picture, Fit], Pixels] = Ahead(partial(_sized, info), cores, _pixels, AHEAD)
        self._following: str | None = None  # the shard whose pictures are the ones that wait

    def read(self, shard: Shard, following: Shard | None) -> Iterator[tuple[Picture, Fit, Future[Pixels]]]:
        """Each picture of ``shard`` in order, its fit, and its pixels (H, W, N) as the VAE takes them, without padding.
        Where the picture cannot be read, the pixels' future raises what ``Picture.read`` and ``image_from_bytes`` do.

        following: the shard that is most likely next: its first pictures are read while the last ones of ``shard`` are
            encoded.
        """
        if self._following != shard.name:
            self._ahead.clear()
            self._ahead.add(shard.pictures)
        self._following = None  # in case the caller stops on the way
        if following is not None:
            self._ahead.add(following.pictures)
        for picture, fit in shard.pictures:
            yield picture, fit, self._ahead.take()
        self._following = following.name if following is not None else None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ahead.__exit__(kind, error, at)


def _pixels(pair: tuple[Picture, Fit]) -> int:
    """How many pixels a picture has before it is resized."""
    height, width = pair[1].original
    return height * width


def _sized(info: CacheInfo, pair: tuple[Picture, Fit]) -> Pixels:
    picture, fit = pair
    rgba = info.latent.image_channels == RGBA
    pixels = image_from_bytes(picture.read(), picture.key, most=MOST_PIXELS, opacity=True)
    if pixels.shape[:2] != fit.original:
        raise ImageError(
            f"{picture.key} is {pixels.shape[0]}x{pixels.shape[1]}, and {fit.original[0]}x{fit.original[1]} by its "
            "header"
        )
    if rgba:
        return fitted(pixels if has_opacity(pixels) else with_opacity(pixels), fit)
    return fitted(flattened(pixels, info.background, picture.key), fit)
