"""Files of ``torch.save``: a zip archive, or before version 1.6 several pickles and then the bytes of all tensors.

A tensor is read only when asked for, and only as many bytes as its shape says: an archive can claim to unpack to any
size.
"""

from __future__ import annotations

import functools
import io
import lzma
import mmap
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vaedeploy.errors import WeightsError
from vaedeploy.source.pickles import Inert, Name, PickleError, View, read_pickle
from vaedeploy.source.stored import Contents, Stored
from vaedeploy.system.text import shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor


MAX_PICKLE = 64_000_000
"""The longest pickle that is read, in bytes. A checkpoint's takes about 300 bytes per tensor."""

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The two numbers, each a pickle, with which files from before version 1.6 begin."""

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "vae")
"""Names under which training programs keep the tensors, beside their counters and settings."""

STORAGE_TYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
"""PyTorch's class of storage -> the type of its numbers."""

Locate = Callable[[str], tuple[int, int]]
"""Key of a storage -> where in the file its bytes begin and end."""


LOCAL_HEADER = 30
"""Bytes of the header before a member of a zip archive, without its name and its extra fields."""

ENCRYPTED = 1
"""The flag of a member of a zip archive that cannot be read without a password."""


class DamagedError(Exception):
    """Bytes that are not what they should be, with the reason."""


def read_torch_file(path: Path, is_zip: bool) -> Contents:
    """The tensors of a file that ``torch.save`` wrote. Raises WeightsError where it is damaged or holds no tensors."""
    try:
        with path.open("rb") as file:
            # Copy-on-write, because PyTorch wants memory that it may write to.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        content, locate = _open_zip(path, mapped) if is_zip else _open_legacy(mapped)
    # NotImplementedError: an archive that says that a later version of zip wrote it.
    except (DamagedError, PickleError, zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a PyTorch checkpoint, or is damaged: {_reason(error)}") from error
    views = _state_dict(path, content)
    return Contents({name: _stored(path, name, view, mapped, locate) for name, view in views.items()})


def _open_zip(path: Path, mapped: mmap.mmap) -> tuple[object, Locate]:
    archive = zipfile.ZipFile(path)  # it opens the file itself; it does not take a map
    root = next((n.removesuffix("data.pkl") for n in archive.namelist() if n.endswith("/data.pkl")), None)
    if root is None:
        raise DamagedError("it is a zip archive without data.pkl")
    order = f"{root}byteorder"
    if order in archive.namelist() and _unpacked(archive, archive.getinfo(order), 16) == b"big":
        raise DamagedError("its numbers are in the byte order of another kind of machine (big-endian)")
    pickled = archive.getinfo(f"{root}data.pkl")
    if pickled.file_size > MAX_PICKLE:
        raise DamagedError(f"its data.pkl is of {pickled.file_size} bytes, more than {MAX_PICKLE}")
    content, _ = read_pickle(io.BytesIO(_unpacked(archive, pickled, MAX_PICKLE)))

    def locate(key: str) -> tuple[int, int]:
        try:
            info = archive.getinfo(f"{root}data/{key}")
        except KeyError as error:
            raise DamagedError(f"its archive has no data/{shown(key)}") from error
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ENCRYPTED:
            # PyTorch compresses nothing. Unpacking what somebody else compressed would take unbounded memory.
            raise DamagedError(f"data/{shown(key)} is compressed. Unpack the archive and pack it with zip -0")
        head = mapped[info.header_offset : info.header_offset + LOCAL_HEADER]
        names = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        start = info.header_offset + LOCAL_HEADER + names
        return start, start + info.file_size

    return content, locate


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, length: int) -> bytes:
    """The first ``length`` bytes of a member, or all that it has."""
    try:
        with archive.open(info) as member:
            return member.read(length)
    except (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        raise DamagedError(f"{shown(info.filename)} cannot be unpacked: {error}") from error


def _open_legacy(mapped: mmap.mmap) -> tuple[object, Locate]:
    file = io.BytesIO(mapped[:MAX_PICKLE])
    if read_pickle(file)[0] != MAGIC or read_pickle(file)[0] != PROTOCOL:
        raise DamagedError("it is a pickle that torch.save did not write")
    system, _ = read_pickle(file)
    content, storages = read_pickle(file)
    keys, _ = read_pickle(file)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise DamagedError("its numbers are in the byte order of another kind of machine (big-endian)")
    if not isinstance(keys, list):
        raise DamagedError("it does not list its storages")
    # The storages follow, each as its number of elements, in 8 bytes, and its bytes. Only the type says how many bytes.
    places: dict[str, tuple[int, int]] = {}
    position = file.tell()
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise DamagedError("it has a storage that no tensor describes")
        if int.from_bytes(mapped[position : position + 8], "little") != storage.count:
            raise DamagedError(f"its storage {shown(key)} is not where it should be")
        end = position + 8 + storage.count * _dtype(storage.type).itemsize
        places[storage.key] = position + 8, end
        position = end
    if position > len(mapped):
        raise DamagedError(f"it is truncated: it has {len(mapped)} bytes of {position}")

    def locate(key: str) -> tuple[int, int]:
        if key not in places:
            raise DamagedError(f"it has no storage {shown(key)}")
        return places[key]

    return content, locate


def _state_dict(path: Path, content: object) -> dict[str, View]:
    """The tensors by name in what a checkpoint holds. Raises WeightsError where there are none."""
    if views := _views(content, 3):
        return views
    if isinstance(content, dict):
        raise WeightsError(f"{path} holds no tensors by their names, but {_listed(content)}. Give a state_dict")
    raise WeightsError(f"{path} holds {_kind(content)}, not tensors by their names (a state_dict)")


def _views(content: object, depth: int) -> dict[str, View]:
    """The tensors at the top of ``content``, or under one of ``WRAPPERS``, which may lie in each other."""
    items = content.items if isinstance(content, Inert) else content
    if not isinstance(items, dict) or not depth:
        return {}
    for name in WRAPPERS:
        if views := _views(items.get(name), depth - 1):
            return views
    return {name: value for name, value in items.items() if isinstance(value, View)}


def _kind(content: object) -> str:
    if isinstance(content, Inert):
        return f"an object of {shown(str(content.maker))}" if isinstance(content.maker, Name) else "an object"
    return "a tensor" if isinstance(content, View) else f"a {type(content).__name__}"


def _listed(items: Mapping[str, object]) -> str:
    names = [shown(name) for name in list(items)[:10]]
    return ", ".join(names) + (f" and {len(items) - 10} more" if len(items) > 10 else "") if names else "nothing"


def _stored(path: Path, name: str, view: View, mapped: mmap.mmap, locate: Locate) -> Stored:
    """Raises WeightsError where the view is not within its storage."""
    storage, size, strides = view.storage, view.size, view.strides
    numbers = (storage.count, storage.start, view.offset, *size, *strides)
    possible = len(size) == len(strides) and all(type(n) is int and 0 <= n < 2**62 for n in numbers)
    if possible and 0 not in size:
        last = storage.start + view.offset + sum((n - 1) * step for n, step in zip(size, strides, strict=True))
        possible = last < storage.count
    if not possible:
        raise WeightsError(f"{path} is damaged: its tensor {shown(name)} is not within its storage")
    return Stored(size, functools.partial(_read, path, name, view, mapped, locate))


def _read(path: Path, name: str, view: View, mapped: mmap.mmap, locate: Locate) -> Tensor:
    import torch

    try:
        dtype = _dtype(view.storage.type if view.dtype is None else view.dtype)
        if 0 in view.size:
            return torch.empty(view.size, dtype=dtype)
        # If the view has a type of its own, its storage holds bytes.
        count = view.storage.count if view.dtype is None else view.storage.count // dtype.itemsize
        start, end = locate(view.storage.key)
        if start + count * dtype.itemsize > min(end, len(mapped)):
            raise DamagedError("its bytes are not all there")
        flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=start)
        return flat.as_strided(view.size, view.strides, view.storage.start + view.offset)
    except (DamagedError, RuntimeError, ValueError, OverflowError) as error:
        raise WeightsError(f"{path} is damaged: its tensor {shown(name)} cannot be read: {_reason(error)}") from error


def _dtype(name: Name) -> torch.dtype:
    import torch

    if name.module in ("torch", "torch.cuda", "torch.storage"):
        # Not getattr, for which PyTorch imports a module at some names.
        dtype = vars(torch).get(STORAGE_TYPES.get(name.name, name.name))
        if isinstance(dtype, torch.dtype):
            return dtype
    raise DamagedError(f"its numbers are of type {shown(str(name))}, which is not known")


def _reason(error: BaseException) -> str:
    return shown(str(error).strip().split("\n")[0]).rstrip(".") or type(error).__name__
