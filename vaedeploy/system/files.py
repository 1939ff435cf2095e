"""Regular files that are read through a handle.

A handle keeps reading the file that it opened, even after a rename puts another file in its place, or the file is
removed. Here ``handle`` is a file descriptor.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLDS = sys.platform != "win32"
"""Whether files are held open: on Windows, nobody could then rename or replace their folder."""

PIECE = 1 << 20
"""Bytes that are read at once for a hash, and at most beyond the end of a file."""


class HeldFolder:
    """A folder, and regular files in it, held open: they can be read as they are now, even after another folder is put
    in its place or its files are removed. A file that is changed in place is changed here too.

    Where files cannot be held (``HOLDS``), each is opened by its path when it is read. Any number of threads, and of
    processes forked from this one, may read at the same time. Raises OSError if ``path`` is not a folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: _Handles | None = _Handles(os.open(path, os.O_RDONLY | os.O_DIRECTORY) if HOLDS else None)

    def close(self) -> None:
        """Let go of everything once readers in progress have finished. Reading raises OSError from now on."""
        self._open = None

    def hold(self, name: str) -> None:
        """Hold the file that has the path ``name`` in the folder now. Raises OSError."""
        handles = self._handles()
        if handles.folder is not None and name not in handles.files:
            handles.files[name] = open_regular(name, handles.folder)

    def holds(self, name: str) -> bool:
        """Whether the file ``name`` is held."""
        return self._open is not None and name in self._open.files

    def is_at(self, path: Path) -> bool:
        """Whether this folder is still the one at ``path``. Raises OSError."""
        folder = self._handles().folder
        return folder is None or os.path.samestat(os.fstat(folder), path.stat())

    @contextmanager
    def handle(self, name: str) -> Iterator[int]:
        """Context with a handle of the file ``name``: the one that is held, or else one opened now. Raises OSError."""
        handles = self._handles()  # this reference keeps them open until the end
        if name in handles.files:
            yield handles.files[name]
            return
        handle = open_regular(self._path / name if handles.folder is None else name, handles.folder)
        try:
            yield handle
        finally:
            os.close(handle)

    def _handles(self) -> _Handles:
        if self._open is None:
            raise OSError(errno.EBADF, "it is closed")
        return self._open


class _Handles:
    """Handles of a folder and of files in it by name, which are closed with the last reference to this object: no lock
    is needed, and none can be left held by a fork.
    """

    def __init__(self, folder: int | None) -> None:
        self.folder = folder
        self.files: dict[str, int] = {}
        # Not at exit, when the system closes them: threads may still be reading.
        weakref.finalize(self, _close_all, folder, self.files).atexit = False


def _close_all(folder: int | None, files: dict[str, int]) -> None:
    for handle in (*files.values(), *([] if folder is None else [folder])):
        os.close(handle)


def open_regular(path: str | Path, folder: int | None = None) -> int:
    """A handle for reading the regular file ``path``, relative to the folder with the handle ``folder``.

    Raises OSError, also for what is not a regular file: a named pipe or a device might never end.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, dir_fd=folder)
    if not stat.S_ISREG(mode := os.fstat(handle).st_mode):
        os.close(handle)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, os.strerror(number) if number == errno.EISDIR else "it is not a regular file")
    return handle


def special(path: Path) -> str | None:
    """``"is a device or a pipe, not a file"`` if ``path`` is one, since reading it may never end; otherwise None."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # opening it says why; ValueError: the name has a zero byte
        return None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "is a device or a pipe, not a file"


def handle_size(handle: int) -> int:
    """Size of the file in bytes."""
    return os.fstat(handle).st_size


def handle_bytes(handle: int, size: int, start: int = 0) -> bytes:
    """``size`` bytes of the file from ``start`` on, or all if there are fewer, in memory that nobody else can
    change.
    """
    pieces = []
    done = 0
    # A read takes memory for as many bytes as it asks for, and a limit on a document asks for far more than there are.
    there = max(handle_size(handle) - start, PIECE)
    while done < size and (piece := _read_at(handle, min(size - done, there), start + done)):
        pieces.append(piece)
        done += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def handle_pieces(handle: int) -> Iterator[bytes]:
    """The file's bytes from the first on, piece by piece."""
    done = 0
    while piece := _read_at(handle, PIECE, done):
        yield piece
        done += len(piece)


def handle_sha256(handle: int) -> str:
    """sha256 of the file's bytes, in hexadecimal, read piece by piece."""
    digest = hashlib.sha256()
    for piece in handle_pieces(handle):
        digest.update(piece)
    return digest.hexdigest()


if sys.platform == "win32":

    def _read_at(handle: int, size: int, offset: int) -> bytes:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, size)

else:
    # Not read(): the offset of a handle belongs to every process that was forked from the one that opened it.
    _read_at = os.pread
