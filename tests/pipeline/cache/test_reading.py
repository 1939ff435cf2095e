"""Pictures that are read ahead of the encoder, also of the shard behind the one that it is at."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from data_sets import data_set

import vaedeploy as vd
from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError
from vaedeploy.images.cache_format import CacheInfo, read_cache_document
from vaedeploy.images.sizing import Sizing
from vaedeploy.pipeline.cache import reading
from vaedeploy.pipeline.cache.plan import Shard, make_plan
from vaedeploy.pipeline.cache.reading import Reader
from vaedeploy.system.progress import silent

PATIENCE = 10

PICTURES = 12


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return data_set(tmp_path / "photos", PICTURES)


def shards_of(bundle: Bundle, photos: Path, out: Path) -> tuple[CacheInfo, list[Shard]]:
    """The shards of a cache of the pictures, two in each, as 16x16."""
    vd.cache_latents(bundle, photos, out, size=(16, 16), shard=2)
    info = read_cache_document(out / "cache.json", CacheInfo)
    sizing = Sizing(info.latent.sizes, size=(16, 16))
    return info, list(make_plan(photos, out, info, sizing, "image", silent).shards)


def test_the_encoder_waits_for_the_first_picture_alone(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one is encoded, the two that follow are read, of the next shard where this one has no more: each call of
    the encoder lasts until they are.
    """
    read, told = threading.Semaphore(0), []
    sized, encode = reading._sized, vd.VAE.encode_moments

    def read_and_tell(*arguments: Any) -> Any:
        pixels = sized(*arguments)
        read.release()
        return pixels

    def encode_late(*arguments: Any, **options: Any) -> Any:
        more = 1 if told else 3
        told.extend(read.acquire(timeout=PATIENCE) for _ in range(min(more, PICTURES - len(told))))
        return encode(*arguments, **options)

    monkeypatch.setattr(reading, "_sized", read_and_tell)
    monkeypatch.setattr(vd.VAE, "encode_moments", encode_late)
    vd.cache_latents(bundle, photos, tmp_path / "out", size=(16, 16), shard=2, options={"threads": 1}).check()
    assert told == [True] * PICTURES


def test_another_shard_than_the_one_that_was_to_follow(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    info, (first, second, third, *_) = shards_of(bundle, photos, tmp_path / "out")

    def read(reader: Reader, shard: Shard, following: Shard | None) -> list[bytes]:
        return [pixels.result().tobytes() for _, _, pixels in reader.read(shard, following)]

    with Reader(info, 2) as alone:
        wanted = {shard.name: read(alone, shard, None) for shard in (first, second, third)}
    assert len({pixels for each in wanted.values() for pixels in each}) == 6
    with Reader(info, 2) as reader:
        for shard, following in ((first, second), (third, first), (first, None), (second, second), (second, third)):
            assert read(reader, shard, following) == wanted[shard.name]
        next(reader.read(third, first))  # and no more of it
        assert read(reader, second, third) == wanted[second.name]


def test_a_picture_of_the_next_shard_that_fails(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    info, (first, second, *_) = shards_of(bundle, photos, tmp_path / "out")
    (photos / second.pictures[0][0].key).unlink()
    with Reader(info, 2) as reader:
        assert [pixels.exception() for _, _, pixels in reader.read(first, second)] == [None, None]
        missing, there = [pixels.exception() for _, _, pixels in reader.read(second, None)]
    assert isinstance(missing, BackendError)
    assert there is None
