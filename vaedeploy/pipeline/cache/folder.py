"""The folder of a cache: whose it is, what killed jobs left there, and its index."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import msgspec

from vaedeploy.errors import OutputError
from vaedeploy.images.cache_format import (
    CACHE,
    FAILED,
    INDEX,
    SHARDS,
    SUFFIX,
    CacheInfo,
    FailedPicture,
    Index,
    IndexItem,
    ShardInfo,
    read_cache_document,
)
from vaedeploy.pipeline.cache.plan import Plan
from vaedeploy.pipeline.cache.shards import held, shard_done
from vaedeploy.system.atomic import clear_drafts, write_file
from vaedeploy.system.lock import lock
from vaedeploy.system.oserrors import reason

PAUSE = 0.2
"""Seconds between two checks of what another job is at work on."""

log = logging.getLogger(__name__)


def claim(folder: Path, info: CacheInfo) -> None:
    """Make the folder this cache's. Raises OutputError where it is another's, or cannot be written to."""
    place = folder / CACHE
    try:
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
        while not place.exists():
            with held(place) as free:
                if not free:  # another job is writing it at this moment
                    time.sleep(PAUSE)
                    continue
                if there := [path.name for path in (folder / SHARDS).glob(f"*{SUFFIX}")]:
                    raise OutputError(f"{folder} has shards, such as {there[0]}, and no {CACHE}. Choose another folder")
                write_file(place, msgspec.json.format(msgspec.json.encode(info)) + b"\n")
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {reason(error)}. Choose another place with -o") from error
    check_whose(folder, info)


def check_whose(folder: Path, info: CacheInfo) -> None:
    """Raise OutputError where the folder is the cache of another VAE or of other options."""
    try:
        other = read_cache_document(folder / CACHE, CacheInfo)
    except FileNotFoundError:
        return
    if other != info:
        raise OutputError(
            f"{folder} is a cache of another VAE or of other options: {other.differences(info)}. Choose another "
            "folder, or the same options"
        )


def sweep(shards: Path) -> None:
    """Remove what killed jobs left: drafts, and locks that nobody holds."""
    clear_drafts(shards)
    clear_drafts(shards.parent)
    for path in (*shards.glob(".*.lock"), *shards.parent.glob(".*.lock")):
        try:
            with lock(path):  # which removes it, unless another process has it
                pass
        except OSError:
            continue


def write_index(plan: Plan, folder: Path) -> tuple[FailedPicture, ...]:
    """Write the index and the list of failures, and return the failures, by key."""
    shards: list[ShardInfo] = []
    items: list[IndexItem] = []
    failed = list(plan.failed)
    for shard in plan.shards:
        header = shard_done(folder, shard)
        if header is None:
            raise OutputError(f"shard {shard.name} has gone from {folder} while this ran. Run the command again")
        items += [IndexItem(item.key, len(shards), row, item.fit) for row, item in enumerate(header.items)]
        shards.append(ShardInfo(shard.name, shard.size, len(header.items)))
        failed += header.failed
    failed.sort(key=lambda failure: failure.key)
    write_file(folder / FAILED, b"".join(msgspec.json.encode(failure) + b"\n" for failure in failed))
    write_file(folder / INDEX, msgspec.json.encode(Index(plan.info, tuple(shards), tuple(items))) + b"\n")
    unused = {path.stem for path in (folder / SHARDS).glob(f"*{SUFFIX}")} - {shard.name for shard in plan.shards}
    if unused:
        log.warning("%s of %s are of pictures that have changed or gone, and are not in the index", len(unused), folder)
    return tuple(failed)
