"""Memory that is free, handed back to the system: glibc keeps it for the threads that had it, where others cannot use
it.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

__all__ = ["collect_garbage", "trim_heap"]


def trim_heap() -> None:
    """Give back what was freed; milliseconds."""
    with suppress(OSError, AttributeError):  # another C library: nothing to do
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def collect_garbage() -> None:
    """Free what only cycles hold, as modules and graphs do, and give it back; half a second."""
    gc.collect()
    trim_heap()
