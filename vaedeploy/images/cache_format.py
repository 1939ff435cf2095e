"""The files of a latent cache. ``docs/datasets.md`` specifies them.

- ``cache.json``: whose latents they are, and how they were made (``CacheInfo``); written first, so that no other VAE or
  options get into the folder.
- ``shards/NAME.safetensors``: the latents of pictures of one size, and a ``ShardHeader`` in its metadata. NAME is a
  hash of all that goes in, and the bytes follow from that: a shard that is there is never written again.
- ``index.json``: all pictures and where they are (``Index``); written last.
- ``failed.jsonl``: one ``FailedPicture`` per line, for each picture that is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import ContractError, LatentError
from vaedeploy.images.sizing import Crop, Fit, Size
from vaedeploy.images.tensors import tensors_of
from vaedeploy.system.documents import read_document
from vaedeploy.system.oserrors import reason
from vaedeploy.system.tensors import bfloat16_bits, safetensors_bytes
from vaedeploy.values.kinds import Precision
from vaedeploy.values.latent import LatentSpec

FORMAT = 1

CACHE, INDEX, FAILED, SHARDS = "cache.json", "index.json", "failed.jsonl", "shards"
"""The names of the files, and of the folder of shards."""

SUFFIX = ".safetensors"

LARGEST = 2**33
"""The most bytes of an index that are read. A picture takes about 200."""

DType = Literal["float16", "bfloat16", "float32"]

TYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""Types in which latents are stored -> safetensors' names of them."""


class CacheInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whose latents a cache holds, and how they were made.

    vae, identity, latent, precision: the bundle's. dtype: that of the stored numbers. buckets, size, step, crop, seed:
    see ``Sizing``. flip: whether each picture is also there mirrored.
    background: the colour on which transparent pictures were flattened; None where these are refused. shard: the most
    pictures in a shard.
    """

    format: int = FORMAT
    vae: str
    identity: str
    latent: LatentSpec
    precision: Precision
    dtype: DType
    buckets: int | None
    size: Size | None
    step: int | None
    crop: Crop
    seed: int
    flip: bool
    background: tuple[int, int, int] | None
    shard: int

    def differences(self, other: CacheInfo) -> str:
        """The fields that differ, in words: ``dtype is float16 there and float32 here``."""
        names = (name for name in self.__struct_fields__ if name != "latent")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        pairs += [(f"latent {name}", there, here) for name, there, here in self.latent.differences(other.latent)]
        return ", ".join(
            f"{name} is {_words(there)} there and {_words(here)} here" for name, there, here in pairs if there != here
        )


class Item(msgspec.Struct, frozen=True):
    """A picture of a shard. key: its path below the source, with forward slashes. fit: what was done with it."""

    key: str
    fit: Fit


class FailedPicture(msgspec.Struct, frozen=True):
    """A picture that could not be read or encoded, and why."""

    key: str
    reason: str


class ShardHeader(msgspec.Struct, frozen=True):
    """What a shard says of itself: the cache that it belongs to, its pictures in the order of rows, and what failed."""

    cache: CacheInfo
    items: tuple[Item, ...]
    failed: tuple[FailedPicture, ...]


class ShardInfo(msgspec.Struct, frozen=True):
    """A shard in the index. name: its file's, without suffix. size: the padded pictures'. rows: how many there are."""

    name: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    size: Size
    rows: int


class IndexItem(msgspec.Struct, frozen=True):
    """A picture in the index: see ``Item``. shard: the number of the shard in ``Index.shards``. row: where in it."""

    key: str
    shard: Annotated[int, msgspec.Meta(ge=0)]
    row: Annotated[int, msgspec.Meta(ge=0)]
    fit: Fit


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of ``index.json``."""

    cache: CacheInfo
    shards: tuple[ShardInfo, ...]
    items: tuple[IndexItem, ...]


def _words(value: Any) -> str:
    """The value of a field of ``CacheInfo``, for an error."""
    return "none" if value is None else str(value)


def tensor_names(info: CacheInfo) -> tuple[str, ...]:
    """The tensors of a shard, each (rows, C, h, w): mean and std, or latent; and those of the mirrored pictures."""
    names = ("mean", "std") if info.latent.sampled else ("latent",)
    return names + tuple(f"{name}_flipped" for name in names if info.flip)


def shard_path(folder: Path, name: str) -> Path:
    """Where a shard of the cache ``folder`` is."""
    return folder / SHARDS / f"{name}{SUFFIX}"


def stored(values: NDArray[np.float32], dtype: DType) -> NDArray[Any] | None:
    """float32 numbers as they are stored: float16, float32, or the bits of bfloat16 as uint16. None where one of them
    is not finite, or too large for the type.
    """
    if not np.isfinite(values).all():
        return None
    if dtype == "bfloat16":
        bits = bfloat16_bits(values)
        return None if ((bits & 0x7F80) == 0x7F80).any() else bits
    with np.errstate(over="ignore"):
        result = values.astype(np.dtype(dtype))
    return result if np.isfinite(result).all() else None


def shard_bytes(header: ShardHeader, tensors: dict[str, NDArray[Any]]) -> bytes:
    """The content of a shard. tensors: as ``stored`` gives them, by ``tensor_names``."""
    metadata = {"vaedeploy.cache": msgspec.json.encode(header).decode(), "vaedeploy.identity": header.cache.identity}
    return safetensors_bytes(tensors, metadata, bfloat16=header.cache.dtype == "bfloat16")


def read_shard_header(path: Path) -> ShardHeader:
    """The header of a shard, checked against its tensors.

    Raises LatentError where the file is missing, truncated, no shard of a cache, or contradicts itself.
    """
    with tensors_of(path, f"there is no shard {path}. Run the command again that made the cache") as file:
        text = (file.metadata() or {}).get("vaedeploy.cache")
        if text is None:
            raise LatentError(f"{path} is not a shard of a latent cache")
        header: ShardHeader = _decode(path, text.encode(), ShardHeader)
        known = TYPES[header.cache.dtype], 4, len(header.items)
        for name in tensor_names(header.cache):
            tensor = file.get_slice(name)
            kind, shape = tensor.get_dtype(), tensor.get_shape()
            if (kind, len(shape), *shape[:2]) != (*known, header.cache.latent.channels):
                raise LatentError(f"{path} has a tensor {name} that is not what its header says")
        return header


def read_cache_document(path: Path, kind: Any) -> Any:
    """``cache.json`` or ``index.json`` as ``kind``. Raises LatentError; FileNotFoundError where it is missing."""
    try:
        return _decode(path, read_document(path, LARGEST), kind)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise LatentError(f"{path} cannot be read: {reason(error)}") from error


def _decode(path: Path, data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ContractError, RecursionError) as error:
        raise LatentError(f"{path} is not of a latent cache of format {FORMAT}: {error}") from error


def check_dtype(dtype: str) -> None:
    """Raise LatentError for a type in which latents are not stored."""
    if dtype not in get_args(DType):
        raise LatentError(f"dtype is {dtype!r}; it must be one of {', '.join(get_args(DType))}")
