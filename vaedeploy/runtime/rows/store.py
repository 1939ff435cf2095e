"""Where arrays between two pieces lie: in memory that is given back row by row, or in files."""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vaedeploy.errors import BackendError, InputError, OutputError
from vaedeploy.system.oserrors import advice, reason

__all__ = ["GIVES_BACK", "PAGE", "Workspace", "empty", "give_back", "leave_memory"]

GIVES_BACK = sys.platform == "linux"
"""Whether this system takes back parts of an array at once."""

PAGE = mmap.PAGESIZE

FILL = bytes(2**20)


class _Pages(mmap.mmap):
    """Pages of memory alone. What is given back of them is lost."""


class _File(mmap.mmap):
    """The pages of a file. What is given back of them is still in the file."""


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array of any content in memory, of which ``give_back`` gives back parts. Raises BackendError where there is
    no memory for it.
    """
    if not GIVES_BACK:
        return np.empty(shape, dtype)
    try:
        pages = _Pages(-1, _bytes(shape, dtype), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without huge pages
            # One row of a channel would take a huge page of it, and a huge page goes back only as a whole.
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    except OSError as error:
        raise BackendError(
            f"a call by rows cannot have {_bytes(shape, dtype):,} bytes of memory: {reason(error)}. Give a lower "
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
        # A page stays that holds elements of others too: of what comes before ``start``, or from ``end`` on.
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
        self.folder = Path(folder).absolute()  # now, since the process may change its folder later
        try:
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            problem = f"workspace {folder} cannot be used: {reason(error)}"
            raise InputError(f"{problem}. Give a folder in which you may write") from error

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of any content in a new file, whose room on the disk is reserved. Raises OutputError where there is
        not enough.
        """
        size = _bytes(shape, dtype)
        try:
            with tempfile.TemporaryFile(dir=self.folder, buffering=0) as file:
                _reserve(file.fileno(), size)
                mapped = _File(file.fileno(), size)
        except OSError as error:
            problem = f"workspace {self.folder} does not take {size:,} bytes: {reason(error)}"
            raise OutputError(f"{problem}. {advice(error)}") from error
        return np.ndarray(shape, dtype, mapped)


def _bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _reserve(file: int, size: int) -> None:
    """Make a file of ``size`` bytes. Written through a map to a file with holes, a full disk would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    while size:
        size -= os.write(file, FILL[:size])


def leave_memory(array: NDArray[Any]) -> None:
    """Let go of the memory that an array of a workspace has taken. Its content stays in the file."""
    pages: object = array.base
    if isinstance(pages, _File) and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)
