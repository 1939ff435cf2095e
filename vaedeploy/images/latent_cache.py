"""``LatentCache``: the latents of a data set, which ``vaedeploy cache`` made, for training loops.

Reading needs numpy and the files, but no VAE. Shards are mapped into memory, so a batch reads only its own latents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import InputError, LatentError
from vaedeploy.images.cache_format import (
    FORMAT,
    INDEX,
    CacheInfo,
    Index,
    IndexItem,
    read_cache_document,
    read_shard_header,
    shard_path,
    tensor_names,
)
from vaedeploy.images.sizing import Size
from vaedeploy.system.tensors import from_bfloat16
from vaedeploy.values.identity import check_whole

OPEN = 128
"""The most shards that are mapped at a time. Each takes a file handle, and a process may have only 1,024 or fewer."""

Latent = NDArray[np.float32]


@dataclass(frozen=True)
class CachedLatent:
    """A picture's latent, scaled and shifted as the diffusion model sees it.

    key: the picture's path below the source. mean: (C, h, w) float32; the latent itself where the VAE gives no
        distribution. std: (C, h, w) float32, or None.
    flipped: mean and std of the mirrored picture, or None where the cache has none.
    original, resized, crop, size: see ``Fit``. If size is less than the factor times (h, w), the picture was padded.
    """

    key: str
    mean: Latent = field(repr=False)
    std: Latent | None = field(repr=False)
    flipped: tuple[Latent, Latent | None] | None = field(repr=False)
    original: Size
    resized: Size
    crop: Size
    size: Size

    def sample(self, seed: Any, *, flipped: bool = False) -> Latent:
        """A sample, mean + std * noise, (C, h, w) float32; the latent where there is no distribution.

        seed: for numpy's Philox. An integer gives the noise of ``VAE.encode(image, sample=True, seed=seed)``.
        """
        if flipped and self.flipped is None:
            raise LatentError(f"{self.key} is not mirrored in this cache; make it with flip (--flip)")
        mean, std = self.flipped if flipped and self.flipped is not None else (self.mean, self.std)
        if std is None:
            return mean
        noise = np.random.Generator(np.random.Philox(seed)).standard_normal(mean.shape, np.float32)
        return mean + std * noise


class LatentCache:
    """The latents of a data set.

        >>> cache = LatentCache("latents")
        >>> len(cache), cache["cats/tom.jpg"].mean.shape
        (1000, (4, 128, 128))

    path: the folder. identity: the identity of the VAE that must have made them, such as ``vae.manifest.vae.identity``;
        None for any.

    Items are found by key or by number, 0 to len - 1; those of one size are adjacent. Any number of threads may use one
    cache. It is pickled by its path, so that data loader workers open it anew.

    Raises LatentError for a folder without a cache, one that is not finished, and latents of another VAE; on access,
    for shards that are missing, broken or of another cache, and KeyError for a key that is not there.
    """

    def __init__(self, path: str | Path, *, identity: str | None = None) -> None:
        self.path = Path(path)
        self._identity = identity
        try:
            self._index: Index = read_cache_document(self.path / INDEX, Index)
        except FileNotFoundError as error:
            raise LatentError(
                f"there is no finished latent cache in {path}: it has no {INDEX}. Run vaedeploy cache, which goes on "
                "where it was stopped"
            ) from error
        if self.info.format != FORMAT:
            raise LatentError(f"{path} has format {self.info.format}; this version reads format {FORMAT}")
        shards = self._index.shards
        if any(item.shard >= len(shards) or item.row >= shards[item.shard].rows for item in self._index.items):
            raise LatentError(f"{path} has an index that contradicts itself. Run vaedeploy cache again")
        check_whole(identity, self.info.identity, f"the VAE of {path}")
        if identity not in (None, self.info.identity):
            raise LatentError(
                f"{path} has latents of {self.info.vae} ({self.info.identity[:12]}), not of the VAE {identity[:12]}: "
                "no diffusion model of the one can use those of the other"
            )
        self._numbers = {item.key: number for number, item in enumerate(self._index.items)}
        self._shard = lru_cache(OPEN)(self._map)

    @property
    def info(self) -> CacheInfo:
        """Whose latents they are, and how they were made."""
        return self._index.cache

    @cached_property
    def keys(self) -> Sequence[str]:
        """The keys of all pictures, by number."""
        return list(self._numbers)

    @property
    def items(self) -> Sequence[IndexItem]:
        """All pictures by number: their keys, where they are, and what was done with them; no latents are read."""
        return self._index.items

    @property
    def shards(self) -> list[list[int]]:
        """The numbers of the pictures in each shard, which have one size."""
        found: list[list[int]] = [[] for _ in self._index.shards]
        for number, item in enumerate(self._index.items):
            found[item.shard].append(number)
        return [numbers for numbers in found if numbers]

    @cached_property
    def buckets(self) -> dict[Size, list[int]]:
        """(H, W) of the padded pictures -> the numbers of the pictures of that size."""
        found: dict[Size, list[int]] = {}
        for number, item in enumerate(self._index.items):
            found.setdefault(self._index.shards[item.shard].size, []).append(number)
        return found

    def __len__(self) -> int:
        return len(self._index.items)

    def __contains__(self, key: object) -> bool:
        return key in self._numbers

    def __getitem__(self, which: str | int) -> CachedLatent:
        number = self._numbers[which] if isinstance(which, str) else range(len(self))[which]
        item = self._index.items[number]
        arrays = [self._row(item, name) for name in tensor_names(self.info)]
        mean, *rest = arrays
        flipped = None
        std = rest[0] if self.info.latent.sampled else None
        if self.info.flip:
            half = arrays[len(arrays) // 2 :]
            flipped = (half[0], half[1] if self.info.latent.sampled else None)
        fit = item.fit
        return CachedLatent(item.key, mean, std, flipped, fit.original, fit.resized, fit.crop, fit.size)

    def __iter__(self) -> Iterator[CachedLatent]:
        return (self[number] for number in range(len(self)))

    def bucket(self, size: Size) -> Iterator[CachedLatent]:
        """The latents of pictures of one size, (H, W) with padding, in the order of their numbers."""
        numbers = self.buckets.get(size)
        if numbers is None:
            raise LatentError(f"no picture is {size[0]}x{size[1]} in {self.path}; sizes are {self._sizes()}")
        return (self[number] for number in numbers)

    def batches(self, count: int, *, seed: int, epoch: int = 0, drop_last: bool = False) -> list[list[int]]:
        """Numbers of pictures in batches of one size each, in an order that follows from seed and epoch.

        count: pictures in a batch. The last batch of a size has fewer, or is left out with ``drop_last``. Raises
        InputError for a count below 1.
        """
        if count < 1:
            raise InputError(f"a batch of {count} pictures was asked for; it has 1 or more")
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
        found = []
        for numbers in self.buckets.values():
            mixed = rng.permutation(numbers).tolist()
            found += [mixed[start : start + count] for start in range(0, len(mixed), count)]
        kept = [batch for batch in found if len(batch) == count or not drop_last]
        return [kept[place] for place in rng.permutation(len(kept))]

    def dataset(self, *, seed: int, flip: bool = False) -> LatentDataset:
        """The cache as a PyTorch data set, see ``LatentDataset``."""
        return LatentDataset(self, seed, flip)

    def _sizes(self) -> str:
        return ", ".join(f"{height}x{width}" for height, width in self.buckets)

    def _row(self, item: IndexItem, name: str) -> Latent:
        row = self._shard(item.shard)[name][item.row]
        return from_bfloat16(row) if row.dtype == np.uint16 else row.astype(np.float32)

    def _map(self, number: int) -> dict[str, NDArray[Any]]:
        """The tensors of a shard, mapped into memory."""
        shard = self._index.shards[number]
        path = shard_path(self.path, shard.name)
        header = read_shard_header(path)
        if header.cache != self.info or len(header.items) != shard.rows:
            raise LatentError(f"{path} is of another cache: {header.cache.differences(self.info)}")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            tensors = json.loads(file.read(length))
        kinds: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F32": np.dtype("<f4")}
        mapped = np.memmap(path, np.uint8, "r", 8 + length) if shard.rows else np.empty(0, np.uint8)
        return {
            name: mapped[slice(*tensors[name]["data_offsets"])]
            .view(kinds[tensors[name]["dtype"]])
            .reshape(tensors[name]["shape"])
            for name in tensor_names(self.info)
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.path.absolute(), self._identity)

    def __repr__(self) -> str:
        return f"LatentCache({str(self.path)!r}, {self.info.vae}, {len(self)} pictures)"


def _open(path: Path, identity: str | None) -> LatentCache:
    return LatentCache(path, identity=identity)


class LatentDataset:
    """A cache as PyTorch's data loader takes it (a map-style data set), without PyTorch.

        >>> data = cache.dataset(seed=0)
        >>> loader = DataLoader(data, batch_sampler=cache.batches(8, seed=0))

    An item is a dict: ``latent`` (C, h, w) float32, a sample; ``key``; and ``original``, ``resized``, ``crop`` and
    ``size`` as (2,) int64, which models such as SDXL take. The loader converts the arrays to tensors.

    The sample, and with ``flip`` whether it is the mirrored picture's, follow from seed, epoch and number, not from the
    loader's workers.
    """

    def __init__(self, cache: LatentCache, seed: int, flip: bool = False) -> None:
        if flip and not cache.info.flip:
            raise LatentError(f"{cache.path} has no mirrored pictures; make it with flip (--flip)")
        self.cache, self.seed, self.flip = cache, seed, flip
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw other samples from now on. Call it before the loader's workers start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, number: int) -> dict[str, Any]:
        latent = self.cache[number]
        choice, noise = np.random.SeedSequence([self.seed, self.epoch, range(len(self))[number]]).spawn(2)
        flipped = self.flip and bool(np.random.Generator(np.random.Philox(choice)).integers(2))
        sizes = {name: np.array(getattr(latent, name)) for name in ("original", "resized", "crop", "size")}
        return {"latent": latent.sample(noise, flipped=flipped), "key": latent.key, **sizes}
