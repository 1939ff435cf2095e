"""The GPU in this machine, as its driver's own program tells, so that asking needs no CUDA library."""

from __future__ import annotations

import subprocess
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
