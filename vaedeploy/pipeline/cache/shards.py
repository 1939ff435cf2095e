"""Making the shards of a cache: reading, sizing and encoding their pictures.

The file system alone says what is done: a shard that is there under its name is whole. So a job may be killed at any
moment, and several may work on one folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import ImageError, LatentError
from vaedeploy.images.cache_format import (
    CacheInfo,
    FailedPicture,
    Item,
    ShardHeader,
    read_shard_header,
    shard_bytes,
    shard_path,
    stored,
    tensor_names,
)
from vaedeploy.images.files import MOST_PIXELS, image_from_bytes
from vaedeploy.images.opacity import flattened, has_opacity, with_opacity
from vaedeploy.images.sizing import Fit, fitted
from vaedeploy.pipeline.cache.plan import Shard
from vaedeploy.pipeline.cache.sources import Picture
from vaedeploy.runtime import VAE
from vaedeploy.system.ahead import done_ahead
from vaedeploy.system.atomic import lock_name, write_file
from vaedeploy.system.interrupts import stop_if_interrupted
from vaedeploy.system.lock import lock
from vaedeploy.values.latent import RGBA

AHEAD = 2 * MOST_PIXELS
"""Pixels of the pictures that are read ahead together, by their headers: 22 pictures of 12 megapixels. Each pixel takes
10 bytes or so while its picture is decoded and resized. Two of the largest pictures fit.
"""


@contextmanager
def held(place: Path) -> Iterator[bool]:
    """Context that holds the lock of a file that is to be written. It gives False if another process holds it.

    It gives True on a file system without locks: twice the work does no harm, since the bytes are equal.
    """
    with ExitStack() as stack:
        try:
            free = stack.enter_context(lock(lock_name(place)))
        except OSError:
            free = True
        yield free


def shard_done(folder: Path, shard: Shard) -> ShardHeader | None:
    """The header of a shard that is there and whole; None for one that is to be made."""
    try:
        return read_shard_header(shard_path(folder, shard.name))
    except LatentError:
        return None


def make_shard(vae: VAE, folder: Path, info: CacheInfo, shard: Shard, cores: int) -> bool:
    """Encode a shard and write it, unless it is there. False where another process is at work on it.

    cores: that this may use. As many threads read and resize the pictures that follow while the encoder runs.

    Pictures that cannot be read or encoded are named in its header. Raises OutputError where it cannot be written, and
    BackendError.
    """
    place = shard_path(folder, shard.name)
    with held(place) as free:
        if free and shard_done(folder, shard) is None:
            write_file(place, _encoded(vae, info, shard, cores))
        return free


def is_free(folder: Path, shard: Shard) -> bool:
    """Whether no process is at work on a shard."""
    with held(shard_path(folder, shard.name)) as free:
        return free


def _encoded(vae: VAE, info: CacheInfo, shard: Shard, cores: int) -> bytes:
    names = tensor_names(info)
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    items: list[Item] = []
    failed: list[FailedPicture] = []
    with closing(done_ahead(partial(_sized, info), shard.pictures, cores, _pixels, AHEAD)) as read:
        for (picture, fit), sized in read:
            try:
                values = _latents(vae, info, picture.key, sized.result())
            except ImageError as error:
                failed.append(FailedPicture(picture.key, str(error)))
                continue
            items.append(Item(picture.key, fit))
            for name, value in zip(names, values, strict=True):
                rows[name].append(value)
    height, width = (side // info.latent.factor for side in shard.size)
    empty = np.empty((0, info.latent.channels, height, width), _numpy_type(info))
    tensors = {name: np.concatenate([empty, *rows[name]]) for name in names}
    return shard_bytes(ShardHeader(info, tuple(items), tuple(failed)), tensors)


def _numpy_type(info: CacheInfo) -> Any:
    return np.dtype(np.uint16 if info.dtype == "bfloat16" else info.dtype)


def _latents(vae: VAE, info: CacheInfo, key: str, pixels: NDArray[np.uint8]) -> list[NDArray[Any]]:
    """The latents of a picture, in the order of ``tensor_names``, each (1, C, h, w) as it is stored."""
    images = [pixels, np.ascontiguousarray(pixels[:, ::-1])] if info.flip else [pixels]
    values = []
    for image in images:
        stop_if_interrupted()
        sampled = info.latent.sampled
        values += list(vae.encode_moments(image, pad=True)) if sampled else [vae.encode(image, pad=True)]
    kept = [stored(value, info.dtype) for value in values]
    if any(value is None for value in kept):
        raise ImageError(f"the latent of {key} has NaN, infinity, or a number that {info.dtype} does not hold")
    return [value for value in kept if value is not None]


def _pixels(pair: tuple[Picture, Fit]) -> int:
    """How many pixels a picture has before it is resized."""
    height, width = pair[1].original
    return height * width


def _sized(info: CacheInfo, pair: tuple[Picture, Fit]) -> NDArray[np.uint8]:
    """A picture (H, W, N) uint8 as the VAE takes it, but for padding."""
    picture, fit = pair
    rgba = info.latent.image_channels == RGBA
    flatten = info.background is not None
    pixels = image_from_bytes(picture.read(), picture.key, most=MOST_PIXELS, opacity=rgba or flatten)
    if pixels.shape[:2] != fit.original:
        raise ImageError(
            f"{picture.key} is {pixels.shape[0]}x{pixels.shape[1]}, and {fit.original[0]}x{fit.original[1]} by its "
            "header"
        )
    if has_opacity(pixels) and info.background is not None:
        pixels = flattened(pixels, info.background)
    if rgba and not has_opacity(pixels):
        pixels = with_opacity(pixels)
    return fitted(pixels, fit)
