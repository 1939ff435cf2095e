"""A lock that the operating system drops when its holder dies."""

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


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Hold the lock file ``path``; gives False at once where another process or thread holds it."""
    handle = _acquire(path)
    if handle is None:
        yield False
        return
    try:
        yield True
    finally:
        _release(path, handle)


def _acquire(path: Path) -> int | None:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if sys.platform == "win32":
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                return None
            raise
        # Its last holder may have removed the file between our open and our lock: then we hold a lock nobody sees.
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
