"""The GPUs that the CUDA driver shows to this process.

The driver is called through ctypes, so no other CUDA library need be installed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
"""File name of the CUDA driver's library."""

MAJOR, MINOR = 75, 76
"""The values of CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, from cuda.h."""

FORKED = (
    "this process was forked after the GPU was used, and CUDA does not survive a fork. Make the VAE in the new "
    "process, or start it with multiprocessing's 'spawn'"
)

_initialized_by: int | None = None
"""Id of the process that initialised the driver; a forked process inherits the value."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, as the CUDA driver describes it.

    name: such as "NVIDIA GeForce RTX 4090". compute_capability: such as "8.9". memory_gib: its total memory, in GiB.
    """

    name: str
    compute_capability: str
    memory_gib: float


def find_gpu(device: int = 0) -> Gpu | None:
    """The GPU with the CUDA device number ``device``, counted among those that CUDA_VISIBLE_DEVICES leaves visible.

    None if there is no such device or no driver.
    """
    driver = _driver()
    if driver is None or device >= _count(driver):
        return None
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    failed = (
        driver.cuDeviceGet(ctypes.byref(handle), device)
        or driver.cuDeviceGetName(name, len(name), handle)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, handle)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, handle)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    )
    if failed:
        return None
    capability = f"{major.value}.{minor.value}"
    return Gpu(name.value.decode("utf-8", "replace"), capability, round(memory.value / 2**30, 1))


def driver_version() -> str | None:
    """The newest CUDA version that the driver supports, such as "13.0"; None without a driver."""
    driver, version = _driver(), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def cuda_devices() -> int:
    """How many GPUs the CUDA driver shows to this process; 0 without a driver. CUDA_VISIBLE_DEVICES is obeyed."""
    driver = _driver()
    return 0 if driver is None else _count(driver)


def device_problem(device: int) -> str | None:
    """A sentence if the driver does not show a GPU of this number to this process; None if it does."""
    count = cuda_devices()
    return None if device < count else f"there is no CUDA device {device}: the driver shows {count or 'none'}"


def was_forked() -> bool:
    """Whether this process was forked from one that had initialised the driver: CUDA does not survive a fork."""
    return _initialized_by not in (None, os.getpid())


def _driver() -> Any:
    """The driver's library, initialised. None without a driver, if it does not initialise, and in a forked process."""
    global _initialized_by
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    if was_forked() or driver.cuInit(0) != 0:
        return None
    _initialized_by = os.getpid()
    return driver


def _count(driver: Any) -> int:
    count = ctypes.c_int(0)
    return count.value if driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
