"""What a cache will hold: pictures with their sizes, in shards of one size that are named by what goes in."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vaedeploy.errors import ImageError, InputError
from vaedeploy.images.cache_format import CacheInfo, FailedPicture, Item
from vaedeploy.images.headers import image_size
from vaedeploy.images.sizing import Fit, Size, Sizing
from vaedeploy.pipeline.cache.sources import Picture, find_pictures
from vaedeploy.system.progress import Progress

NAME = 32
"""Characters of a shard's name: 128 bits of its hash."""

STEP = 100
"""Pictures between two reports of the progress of finding them."""


class Shard(msgspec.Struct, frozen=True):
    """A shard to be made. size: its padded pictures'. pictures: in the order of their keys, each with its fit."""

    name: str
    size: Size
    pictures: tuple[tuple[Picture, Fit], ...]


@dataclass(frozen=True)
class Plan:
    """The shards of a cache, and the pictures that are in none because they cannot be read."""

    info: CacheInfo
    shards: tuple[Shard, ...]
    failed: tuple[FailedPicture, ...]


def make_plan(source: Path, folder: Path, info: CacheInfo, sizing: Sizing, column: str, progress: Progress) -> Plan:
    """Find the pictures of ``source``, read their sizes, and sort them into shards.

    folder: the cache's, which is no part of the source. column: of parquet files, see ``find_pictures``. Raises
    InputError for a source without pictures.
    """
    what = f"Finding pictures in {source}"
    failed: list[FailedPicture] = []
    by_size: dict[Size, list[tuple[Picture, Fit]]] = {}
    keys: set[str] = set()
    for count, found in enumerate(find_pictures(source, folder, column)):
        if count % STEP == 0:
            progress(what, 0, 1)
        if isinstance(found, FailedPicture):
            failed.append(found)
        elif found.key in keys:
            failed.append(FailedPicture(found.key, "another picture has the same key"))
        else:
            keys.add(found.key)
            try:
                fit = sizing.fit(found.key, _size(found))
            except ImageError as error:
                failed.append(FailedPicture(found.key, str(error)))
                continue
            by_size.setdefault(sizing.shard_size(fit), []).append((found, fit))
    progress(what, 1, 1)
    if not (keys or failed):
        raise InputError(f"there is no picture in {source}")
    shards = [
        Shard(_name(info, size, pictures), size, tuple(pictures))
        for size, all_pictures in sorted(by_size.items())
        for pictures in _pieces(sorted(all_pictures, key=lambda pair: pair[0].key), info.shard)
    ]
    return Plan(info, tuple(shards), tuple(failed))


def _size(picture: Picture) -> Size:
    if picture.size is None and picture.cell is None:
        try:
            with Path(picture.path).open("rb") as file:
                if picture.stamp[0] == 0:
                    raise ImageError(f"{picture.key} is empty (0 bytes)")
                return image_size(file, picture.key)
        except OSError as error:
            raise ImageError(f"{picture.key} cannot be read: {error.strerror or error}") from error
    data = picture.read()
    if not data:
        raise ImageError(f"{picture.key} is empty (0 bytes)")
    return image_size(io.BytesIO(data), picture.key)


def _pieces(pictures: list[tuple[Picture, Fit]], count: int) -> Iterable[list[tuple[Picture, Fit]]]:
    return (pictures[start : start + count] for start in range(0, len(pictures), count))


def _name(info: CacheInfo, size: Size, pictures: list[tuple[Picture, Fit]]) -> str:
    """The hash of all that determines the bytes of a shard. Where the files are is no part of it."""
    content = [
        (Item(picture.key, fit), picture.stamp, picture.start, picture.size, picture.cell) for picture, fit in pictures
    ]
    return hashlib.sha256(msgspec.json.encode((info, size, content))).hexdigest()[:NAME]
