"""Where arrays between two pieces lie: in memory that is given back row by row, or in files."""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vaedeploy.errors import BackendError, InputError
from vaedeploy.system.oserrors import reason, told_as

__all__ = ["GIVES_BACK", "PAGE", "FileArray", "Workspace", "empty", "give_back"]

GIVES_BACK = sys.platform == "linux"
"""Whether this system takes back parts of an array at once."""

PAGE = mmap.PAGESIZE

FILL = bytes(2**20)


class _Pages(mmap.mmap):
    """Pages that no file backs. What is given back of them is lost."""


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An uninitialised array in memory, parts of which ``give_back`` can give back. Raises BackendError where there is
    no memory for it.
    """
    if not GIVES_BACK:
        return np.empty(shape, dtype)
    try:
        pages = _Pages(-1, _bytes(shape, dtype), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without huge pages
            # A single row would take a huge page in each channel, and a huge page goes back only as a whole.
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    except OSError as error:
        raise BackendError(
            f"a call by rows cannot get {_bytes(shape, dtype):,} bytes of memory: {reason(error)}. Give a lower "
            "max_memory, or a smaller image"
        ) from error
    return np.ndarray(shape, dtype, pages)


def give_back(array: NDArray[Any], axis: int, begin: int, end: int) -> None:
    """Give the memory of [begin, end) along ``axis`` back to the system. Nobody may read these elements any more."""
    pages: object = array.base
    if not isinstance(pages, _Pages):
        return
    inner = array.strides[axis]
    for outer in range(math.prod(array.shape[:axis])):
        start = outer * array.shape[axis] * inner
        # A page that also holds elements before ``start``, or from ``end`` on, stays.
        first = max(-(-start // PAGE), (start + begin * inner) // PAGE) * PAGE
        last = (start + end * inner) // PAGE * PAGE
        if first < last:
            pages.madvise(mmap.MADV_DONTNEED, first, last - first)


class Workspace:
    """A folder whose file system holds arrays.

    Its files have no names, or lose them at once: the system frees them when an array is no longer used, and when the
    process ends, however it ends.

    Raises InputError for a path that is no folder in which files can be made.
    """

    def __init__(self, folder: str | Path) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise InputError(f"workspace is {folder!r}; it must be the path of a folder (str or Path), or None")
        self.folder = Path(folder).absolute()  # now: the process may change its folder later
        try:
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            problem = f"workspace {folder} cannot be used: {reason(error)}"
            raise InputError(f"{problem}. Give a folder in which you may write") from error

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> FileArray:
        """An uninitialised array in a new file, with its room on the disk reserved. Raises OutputError where there is
        not enough.
        """
        size = _bytes(shape, dtype)
        with told_as(f"workspace {self.folder} does not take {size:,} bytes"):
            file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115  # FileArray closes it
            array = FileArray(file, shape, np.dtype(dtype), self.folder)
            _reserve(file, size)
        return array


class FileArray:
    """An array in a file, which is read and written, and not mapped: mapped pages would count as the process's memory.

    file: unbuffered; it is closed with the array. folder: where it is, for errors: ``read`` and ``write`` raise
    OutputError where the disk fails.
    """

    def __init__(self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], folder: Path) -> None:
        self.shape, self.dtype, self._folder = shape, dtype, folder
        self._file = file
        # Not in __del__: where garbage is collected, the file might come first, and warn that it is not closed.
        weakref.finalize(self, file.close)

    def read(self, axis: int, low: int, high: int) -> NDArray[Any]:
        """The elements [low, high) along ``axis``."""
        rows = np.empty((*self.shape[:axis], high - low, *self.shape[axis + 1 :]), self.dtype)
        with told_as(f"workspace {self._folder} does not give {rows.nbytes:,} bytes back"):
            for place, part in self._parts(axis, low, rows):
                self._file.seek(place)
                left = part.data.cast("B")
                while left:
                    left = left[self._file.readinto(left) :]  # type: ignore[attr-defined]  # a file without a buffer
        return rows

    def write(self, axis: int, low: int, values: NDArray[Any]) -> None:
        """Write the elements from ``low`` on along ``axis``."""
        with told_as(f"workspace {self._folder} does not take {values.nbytes:,} bytes"):
            for place, part in self._parts(axis, low, np.ascontiguousarray(values)):
                self._file.seek(place)
                left = part.data.cast("B")
                while left:
                    left = left[self._file.write(left) :]

    def _parts(self, axis: int, low: int, rows: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Where each contiguous part of ``rows`` lies in the file, and the part."""
        inner = math.prod(self.shape[axis + 1 :]) * self.dtype.itemsize
        for outer, part in enumerate(rows.reshape(math.prod(self.shape[:axis]), -1)):
            yield (outer * self.shape[axis] + low) * inner, part


def _bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _reserve(file: IO[bytes], size: int) -> None:
    """Reserve ``size`` bytes for a file, so that a full disk shows now and not in the middle of a call."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    while size:
        size -= file.write(FILL[:size])
