"""The GPU in this machine, as its driver tells: asking needs no CUDA library but the driver's own."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import dataclass

QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Gpu:
    """name: such as "NVIDIA GeForce RTX 4090". compute_capability: such as "8.9". memory_gib: in GiB, all of it."""

    name: str
    compute_capability: str
    memory_gib: float


def find_gpu() -> Gpu | None:
    """The first GPU; None where there is none, or no driver."""
    try:
        told = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=30).stdout
        name, capability, memory = told.splitlines()[0].rsplit(", ", 2)
        return Gpu(name.strip(), capability, round(float(memory) / 1024, 1))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def cuda_devices() -> int:
    """How many GPUs the CUDA driver shows to this process; 0 without a driver. CUDA_VISIBLE_DEVICES is obeyed."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
