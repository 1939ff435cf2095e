"""A lock file, which the operating system unlocks when the process that holds it dies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

# Not filelock's FileLock: it makes missing folders, leaves its file behind, and cannot lock a file being written.


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
    """Context with a handle for writing the new file ``path``, which is locked: ``lock`` of that path then gives False.

    It gives None if another process took the file for abandoned before it was locked: then take another path. The file
    stays at exit. Raises OSError, also if there is a file already.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        try:
            ours = lock_descriptor(handle, blocking=False) and path.exists()
        except OSError:  # a file system without locks
            ours = True
        yield handle if ours else None
    finally:
        os.close(handle)


def _acquire(path: Path) -> int | None:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            free = lock_descriptor(handle, blocking=False)
        except BaseException:
            os.close(handle)
            raise
        # The last holder may have removed the file between open and lock: then nobody else can see this lock.
        with suppress(FileNotFoundError):
            if free and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)
        if not free:
            return None


def _release(path: Path, handle: int) -> None:
    if sys.platform != "win32":
        path.unlink(missing_ok=True)
        os.close(handle)
    else:
        os.close(handle)
        with suppress(OSError):
            path.unlink()
