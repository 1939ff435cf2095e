"""Caches of latents as training loops read them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from data_sets import data_set
from tiny_bundle import tiny_bundle

import vaedeploy as vd
from vaedeploy.errors import InputError, LatentError
from vaedeploy.images import latent_cache
from vaedeploy.images.cache_format import stored
from vaedeploy.images.files import read_image
from vaedeploy.images.latent_cache import LatentCache
from vaedeploy.system.tensors import from_bfloat16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tiny``, ``photos`` (12, three sizes), and the cache ``latents`` (float32, mirrored as well)."""
    folder = tmp_path_factory.mktemp("cache")
    bundle = tiny_bundle(folder / "tiny")
    vd.cache_latents(
        bundle, data_set(folder / "photos", 12), folder / "latents", dtype="float32", flip=True, shard=3
    ).check()
    return folder


@pytest.fixture(scope="module")
def cache(made: Path) -> LatentCache:
    return LatentCache(made / "latents")


def test_items_are_what_the_runtime_gives(made: Path, cache: LatentCache) -> None:
    assert len(cache) == 12
    with vd.VAE(made / "tiny") as vae:
        for latent in cache:
            image = read_image(made / "photos" / latent.key)
            mean, std = vae.encode_moments(image)
            np.testing.assert_array_equal([latent.mean, latent.std], [mean[0], std[0]])
            np.testing.assert_array_equal(latent.sample(7), vae.encode(image, sample=True, seed=7)[0])
            mirrored = vae.encode_moments(np.ascontiguousarray(image[:, ::-1]))
            np.testing.assert_array_equal(latent.flipped, [part[0] for part in mirrored])
            assert latent.original == latent.size == image.shape[:2]


def test_by_key_and_by_number(cache: LatentCache) -> None:
    assert "more/001.png" in cache
    assert "nothing" not in cache
    assert [cache[number].key for number in range(-1, 3)] == [cache.keys[number] for number in range(-1, 3)]
    assert cache["more/001.png"].key == "more/001.png"
    assert "array" not in repr(cache["more/001.png"])
    with pytest.raises(KeyError):
        cache["nothing"]
    with pytest.raises(IndexError):
        cache[12]


def test_by_bucket(cache: LatentCache) -> None:
    assert {size: len(numbers) for size, numbers in cache.buckets.items()} == {(24, 40): 4, (32, 32): 4, (40, 24): 4}
    assert [latent.mean.shape for latent in cache.bucket((24, 40))] == [(2, 6, 10)] * 4
    with pytest.raises(LatentError, match=r"no picture is 8x8 in .*; sizes are 24x40, 32x32, 40x24"):
        cache.bucket((8, 8))


def test_batches_are_of_one_size_and_follow_from_the_seed(cache: LatentCache) -> None:
    batches = cache.batches(3, seed=0)
    assert sorted(number for batch in batches for number in batch) == list(range(12))
    assert all(len({cache[number].mean.shape for number in batch}) == 1 for batch in batches)
    assert batches == cache.batches(3, seed=0)
    assert batches != cache.batches(3, seed=1)
    assert batches != cache.batches(3, seed=0, epoch=1)
    assert [len(batch) for batch in cache.batches(3, seed=0, drop_last=True)] == [3, 3, 3]
    with pytest.raises(InputError, match="a batch of -1 pictures was asked for; it has 1 or more"):
        cache.batches(-1, seed=0)


def test_a_data_loader_of_pytorch_takes_it(cache: LatentCache) -> None:
    data = pytest.importorskip("torch.utils.data")
    dataset = cache.dataset(seed=0, flip=True)
    batches = cache.batches(4, seed=0)
    loaded = list(data.DataLoader(dataset, batch_sampler=batches))
    assert sorted(key for batch in loaded for key in batch["key"]) == sorted(cache.keys)
    assert {tuple(batch["latent"].shape) for batch in loaded} == {(4, 2, 6, 10), (4, 2, 10, 6), (4, 2, 8, 8)}
    assert all(batch["original"].shape == (4, 2) for batch in loaded)
    first = dataset[batches[0][0]]
    np.testing.assert_array_equal(loaded[0]["latent"][0], first["latent"])
    dataset.set_epoch(1)
    assert not np.array_equal(dataset[batches[0][0]]["latent"], first["latent"])


def test_samples_are_of_both_pictures(cache: LatentCache) -> None:
    dataset, mirrored = cache.dataset(seed=0, flip=True), []
    for number in range(12):
        noisy, latent = dataset[number]["latent"], cache[number]
        mirrored.append(np.abs(noisy - latent.flipped[0]).sum() < np.abs(noisy - latent.mean).sum())
    assert 0 < sum(mirrored) < 12


def test_few_shards_are_open(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_cache, "OPEN", 2)
    cache = LatentCache(made / "latents")
    assert [latent.key for latent in cache] == cache.keys
    assert cache._shard.cache_info().currsize == 2


def test_it_is_pickled_by_its_path(made: Path, cache: LatentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    data = pickle.dumps(LatentCache("latents"))
    monkeypatch.chdir("/")
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data)[5].mean, cache[5].mean)


def test_another_vae_is_told(made: Path, cache: LatentCache) -> None:
    LatentCache(made / "latents", identity=cache.info.identity)
    with pytest.raises(LatentError, match=r"has latents of tiny \(111111111111\), not of the VAE abcdabcdabcd"):
        LatentCache(made / "latents", identity="abcd" * 16)
    with pytest.raises(
        InputError, match=r"^identity is '1111'; give a whole one, of 64 hexadecimal digits\. That of the "
    ):
        LatentCache(made / "latents", identity="1111")


def test_what_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(LatentError, match=r"no finished latent cache in .*: it has no index\.json"):
        LatentCache(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(LatentError, match="is not of a latent cache of format 1"):
        LatentCache(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"name":"', '"name":"../', "is not of a latent cache of format 1: Expected `str` matching regex"),
        ('"row":0', '"row":-1', "is not of a latent cache of format 1: Expected `int` >= 0"),
        ('"row":2', '"row":3', "has an index that contradicts itself"),
        ('"shard":5,"row"', '"shard":6,"row"', "has an index that contradicts itself"),
        ('"format":1', '"format":2', "has format 2; this version reads format 1"),
    ],
)
def test_an_index_from_a_stranger(old: str, new: str, reason: str, made: Path, tmp_path: Path) -> None:
    index = (made / "latents/index.json").read_text()
    assert old in index
    (tmp_path / "index.json").write_text(index.replace(old, new, 1))
    with pytest.raises(LatentError, match=reason):
        LatentCache(tmp_path)


@pytest.mark.parametrize("fault", ["missing", "truncated", "of another cache"])
def test_shards_that_cannot_be_used(fault: str, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    vd.cache_latents(made / "tiny", made / "photos", out, size=(16, 16))
    (shard,) = (out / "shards").iterdir()
    if fault == "missing":
        shard.unlink()
    elif fault == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        vd.cache_latents(made / "tiny", made / "photos", tmp_path / "other", size=(16, 16), dtype="float32")
        (other,) = (tmp_path / "other/shards").iterdir()
        shard.write_bytes(other.read_bytes())
    words = {"missing": "there is no shard", "truncated": "truncated", "of another cache": "dtype is float32 there and"}
    with pytest.raises(LatentError, match=words[fault]):
        LatentCache(out)[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rounds_to_the_nearest(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(0, 3, 5000).astype(np.float32)
    values[:3] = 0.0, 1.00390625, 1.01171875  # the last two are between two bfloat16 numbers
    kept = stored(values, dtype)
    assert kept is not None
    given = from_bfloat16(kept) if dtype == "bfloat16" else kept.astype(np.float32)
    wanted = torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(given, wanted)


@pytest.mark.parametrize(
    ("value", "dtypes"),
    [(70000.0, ["float16"]), (3.4e38, ["float16", "bfloat16"]), (np.nan, ["float16", "bfloat16", "float32"])],
)
def test_what_a_type_does_not_hold(value: float, dtypes: list[str]) -> None:
    values = np.array([1.0, value], np.float32)
    assert [dtype for dtype in ("float16", "bfloat16", "float32") if stored(values, dtype) is None] == dtypes
