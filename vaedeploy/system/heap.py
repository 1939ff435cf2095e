"""Returning freed memory to the operating system.

glibc keeps freed memory for the threads that allocated it, where others cannot use it.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

__all__ = ["collect_garbage", "trim_heap"]


def trim_heap() -> None:
    """Return freed memory to the operating system. Takes milliseconds."""
    with suppress(OSError, AttributeError):  # a C library other than glibc, without malloc_trim
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def collect_garbage() -> None:
    """Free objects that only reference cycles keep alive, and return their memory to the operating system.

    PyTorch modules and ONNX graphs contain such cycles. Takes half a second.
    """
    gc.collect()
    trim_heap()
