"""The stand-in for a CUDA driver of ``cuda_driver.c``, compiled."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from shutil import which

COMPILER = which("gcc")


def load_driver(folder: Path) -> ctypes.CDLL:
    """The driver, under the name by which everybody looks for one: the first that is loaded answers to it."""
    built, source = folder / "driver.so", Path(__file__).with_name("cuda_driver.c")
    assert COMPILER is not None
    command = [COMPILER, "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", built, source]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(built))


def show_devices(driver: ctypes.CDLL, count: int) -> None:
    """How many GPUs it has from now on."""
    ctypes.c_int.in_dll(driver, "devices").value = count
