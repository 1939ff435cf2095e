"""Making the shards of a cache: encoding their pictures, which ``reading`` gives, and writing them.

The file system alone says what is done: a shard under its final name is whole. So a job may be killed at any moment,
and several may work on one folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from vaedeploy.pipeline.cache.plan import Shard
from vaedeploy.pipeline.cache.reading import Reader
from vaedeploy.runtime import VAE
from vaedeploy.system.atomic import lock_name, write_file
from vaedeploy.system.interrupts import stop_if_interrupted
from vaedeploy.system.lock import lock


@contextmanager
def held(place: Path) -> Iterator[bool]:
    """Context that holds the lock of a file that is to be written. It gives False if another process holds it.

    It gives True on a file system without locks: doing the work twice does no harm, since the bytes are equal.
    """
    with ExitStack() as stack:
        try:
            free = stack.enter_context(lock(lock_name(place)))
        except OSError:
            free = True
        yield free


def shard_done(folder: Path, shard: Shard) -> ShardHeader | None:
    """The header of a shard that is there and whole; None for one that must be made."""
    try:
        return read_shard_header(shard_path(folder, shard.name))
    except LatentError:
        return None


def make_shard(
    vae: VAE, folder: Path, info: CacheInfo, shard: Shard, reader: Reader, following: Shard | None = None
) -> bool:
    """Encode a shard and write it, unless it is there. Returns False where another process is at work on it.

    following: the shard that is most likely next; see ``Reader.read``.

    Pictures that cannot be decoded or encoded are named in its header. Raises OutputError where it cannot be written,
    and BackendError, also where a picture's bytes cannot be read now or memory is short.
    """
    place = shard_path(folder, shard.name)
    with held(place) as free:
        if free and shard_done(folder, shard) is None:
            write_file(place, _encoded(vae, info, shard, reader, following))
        return free


def is_free(folder: Path, shard: Shard) -> bool:
    """Whether no process is at work on a shard."""
    with held(shard_path(folder, shard.name)) as free:
        return free


def _encoded(vae: VAE, info: CacheInfo, shard: Shard, reader: Reader, following: Shard | None) -> bytes:
    names = tensor_names(info)
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    items: list[Item] = []
    failed: list[FailedPicture] = []
    for picture, fit, pixels in reader.read(shard, following):
        try:
            values = _latents(vae, info, picture.key, pixels.result())
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
