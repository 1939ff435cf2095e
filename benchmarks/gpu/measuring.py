"""Timing on a device, in turns, and a description of the machine."""

from __future__ import annotations

import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import onnxruntime
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


PROVIDER = "CUDAExecutionProvider" if DEVICE == "cuda" else "CPUExecutionProvider"


BASE = "eager fp16"


Run = Callable[[], Tensor]


def machine() -> dict[str, Any]:
    facts: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    facts |= {"onnxruntime": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}
    if DEVICE == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        facts["gpu, driver, memory"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        facts |= {"capability": torch.cuda.get_device_capability(), "cuda": torch.version.cuda}
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def seconds(call: Run, repeats: int) -> float:
    """Seconds per call, averaged over ``repeats`` calls in a row on the device."""
    if DEVICE == "cpu":
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - started) / repeats
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def take_turns(calls: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """The seconds of each call in each round. The order is reversed every other round, and all calls are warmed up."""
    repeats = {}
    for name, call in calls.items():
        seconds(call, 2)
        repeats[name] = max(2, math.ceil(0.04 / seconds(call, 2)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            times[name].append(seconds(calls[name], repeats[name]))
    return times


def peak_gb(call: Run) -> float | None:
    """The peak of PyTorch's allocator during a call, in GB above what it held before."""
    if DEVICE == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def used_gb() -> float:
    """The device memory that all processes use together, in GB."""
    if DEVICE == "cpu":
        return 0.0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9


def errors(found: Tensor, expected: Tensor) -> dict[str, float]:
    found = found.double()
    return {
        "rel_l2": float((found - expected).norm() / expected.norm()),
        "not finite": float((~torch.isfinite(found)).double().mean()),
    }


def floor() -> dict[str, float]:
    side, count = (8192, 2**28) if DEVICE == "cuda" else (512, 2**20)
    a, b = (torch.randn(side, side, device=DEVICE).to(torch.float16) for _ in range(2))
    source = torch.randn(count, device=DEVICE)
    target = torch.empty_like(source)
    product = statistics.median(seconds(lambda: a @ b, 10) for _ in range(7))
    moved = statistics.median(seconds(lambda: target.copy_(source), 10) for _ in range(7))
    return {"fp16 matrix product, TFLOP/s": 2 * side**3 / product / 1e12, "copy, TB/s": 8 * count / moved / 1e12}


def row_of(
    part: str, size: int, batch: int, name: str, times: dict[str, list[float]], far: dict[str, float]
) -> dict[str, Any]:
    values = times[name]
    row = {"part": part, "size": size, "batch": batch, "name": name, "ms": statistics.median(values) * 1e3}
    row["over eager fp16"] = statistics.median(v / b for v, b in zip(values, times[BASE], strict=True))
    return row | far
