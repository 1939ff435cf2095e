"""A lock file, which the operating system unlocks when the process that holds it dies."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

BUSY = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""Errors of locking a file that another process or thread has locked."""


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Context that holds the lock file ``path``. It gives True, or False at once if another process or thread holds it.

    >>> with lock(Path(".mse840k.lock")) as acquired:

    The file is made if it does not exist, and removed at exit. Raises OSError if it cannot be opened or locked.
    """
    handle = _acquire(path)
    if handle is None:
        yield False
        return
    try:
        yield True
    finally:
        _release(path, handle)


@contextmanager
def hold_file(path: Path) -> Iterator[int | None]:
    """Context with a handle for writing the new file ``path``, which is locked: ``lock`` of that path gives False.

    It gives None if another process took the file for an abandoned one before it was locked: take another path then.
    The file stays at exit. Raises OSError, also if there is a file already.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        try:
            _lock(handle)
            ours = path.exists()
        except OSError as error:
            ours = error.errno not in BUSY  # other errors are of file systems without locks
        yield handle if ours else None
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """Lock an open file. Raises OSError at once if another handle has it."""
    if sys.platform == "win32":
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _acquire(path: Path) -> int | None:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle)
        except OSError as error:
            os.close(handle)
            if error.errno in BUSY:
                return None
            raise
        # The last holder may have removed the file between open and lock: then nobody else can see this lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)


def _release(path: Path, handle: int) -> None:
    if sys.platform != "win32":
        path.unlink(missing_ok=True)
        os.close(handle)
    else:
        os.close(handle)
        with suppress(OSError):
            path.unlink()
