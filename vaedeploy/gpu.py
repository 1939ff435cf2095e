"""The GPUs in this machine, as the CUDA driver shows them to this process: asking needs no library but the driver's."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, in cuda.h."""


@dataclass(frozen=True)
class Gpu:
    """name: such as "NVIDIA GeForce RTX 4090". compute_capability: such as "8.9". memory_gib: in GiB, all of it."""

    name: str
    compute_capability: str
    memory_gib: float


def find_gpu(device: int = 0) -> Gpu | None:
    """The CUDA device of that number; None where there is none, or no driver. CUDA_VISIBLE_DEVICES is obeyed."""
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


def cuda_devices() -> int:
    """How many GPUs the CUDA driver shows to this process; 0 without a driver. CUDA_VISIBLE_DEVICES is obeyed."""
    driver = _driver()
    return 0 if driver is None else _count(driver)


def _driver() -> Any:
    """The driver's library, ready to be asked; None where there is none."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _count(driver: Any) -> int:
    count = ctypes.c_int(0)
    return count.value if driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
