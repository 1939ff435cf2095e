"""Safetensors files, whose header is checked before the library reads it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source.stored import Contents, Stored
from vaedeploy.system.text import shown

if TYPE_CHECKING:
    from torch import Tensor


MAX_HEADER = 25_000_000
"""The longest header that is read, in bytes. A checkpoint's takes about 100 bytes per tensor; the library accepts four
times this length, which can take more than 4 GB of memory.
"""


class _Entry(msgspec.Struct):
    """What a header says of a tensor: dtype is not needed here, because the library reads it."""

    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins with ``start``, 9 bytes or more, is a safetensors file.

    It begins with the length of its header, in 8 bytes, and the header is a JSON object. A pickle cannot begin like
    that: 4 of its first 8 bytes would have to be 0.
    """
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32


def read_safetensors(path: Path) -> Contents:
    """The tensors of a safetensors file. Raises WeightsError where it is truncated or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise WeightsError(
                    f"{path} has a header of {length} bytes; those of real files are below {MAX_HEADER}. "
                    "Download or copy it again"
                )
            header = file.read(length)
        size = path.stat().st_size
        entries: dict[str, Any] = {}
        if len(header) == length:
            entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(entries.pop("__metadata__", b"{}"), type=dict[str, str])
        tensors = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in entries.items()}
        expected = 8 + length + max((entry.data_offsets[1] for entry in tensors.values()), default=0)
        if size < expected:
            raise WeightsError(
                f"{path} is truncated: it has {size} bytes of at least {expected}. Download or copy it again"
            )
        opened = safe_open(path, framework="pt")
    except (SafetensorError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OSError, OverflowError) as error:
        raise _damaged(path, error) from error
    return Contents(
        {name: Stored(e.shape, functools.partial(_read, path, opened, name, e.shape)) for name, e in tensors.items()},
        metadata,
    )


def _read(path: Path, opened: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    from safetensors import SafetensorError

    try:
        tensor: Tensor = opened.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"its header says two things of {shown(name)}")
        return tensor
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> WeightsError:
    return WeightsError(f"{path} is a damaged safetensors file: {shown(str(error))}. Download or copy it again")
