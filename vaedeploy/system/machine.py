"""What this machine computes with, as figures and verdicts name it."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU as it calls itself, such as "Intel(R) Xeon(R) Processor"; where it does not say, its kind, "aarch64".

    cpuinfo: where Linux describes it, for tests.
    """
    with suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
