"""The CPU of this machine, as figures and verdicts name it."""

from __future__ import annotations

import math
import os
import platform
from contextlib import suppress
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux describes the CPU."""


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """The CPU's own name, with its family and model if stated, since many virtual machines hide the name: "Intel(R)
    Xeon(R) Processor, family 6, model 207". If it has none, its architecture, "aarch64".
    """
    told = _first_core(cpuinfo)
    if not (name := told.get("model name")):
        return platform.processor() or platform.machine()
    return ", ".join([name, *(f"{key.split()[-1]} {told[key]}" for key in ("cpu family", "model") if told.get(key))])


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Names of the instruction sets that the CPU has, as Linux spells them; none where the system does not say."""
    told = _first_core(cpuinfo)
    return frozenset((told.get("flags") or told.get("Features") or "").split())  # the second is Arm's


def _first_core(cpuinfo: Path) -> dict[str, str]:
    """What ``cpuinfo`` says of the first core."""
    told: dict[str, str] = {}
    with suppress(OSError), cpuinfo.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:  # the system writes them as they are read
            if not line.strip():
                break
            key, _, value = line.partition(":")
            told[key.strip()] = value.strip()
    return told


def usable_cores() -> int:
    """How many cores this process may use, by its CPU affinity, or its container's CPU quota if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores
