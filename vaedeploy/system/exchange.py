"""Two directories change places in one step, where the system can do that."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

AT_FDCWD = -100
"""Linux: paths are relative to the current directory."""

RENAME_EXCHANGE = 2
"""Linux: the flag of renameat2 that exchanges the two."""

CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
"""Errors of kernels, file systems and sandboxes that lack the call or the flag."""


def exchange(one: Path, other: Path) -> bool:
    """Let two directories change places, in one step. False where the system cannot, or if ``other`` does not exist.

    Raises OSError if they cannot change places for another reason.
    """
    if sys.platform != "linux" or not other.exists():
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # not every C library has it
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))
