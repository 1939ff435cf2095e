"""What this machine can do at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from vaedeploy.pipeline.turns import seconds_of
from vaedeploy.values.kinds import Precision


class Ceilings(msgspec.Struct, frozen=True):
    """What this machine was measured to do: operations a second in a large matrix product, by precision, and bytes a
    second in a large copy, read and written. device: "CPU", or the GPU's name.
    """

    device: str
    product: Mapping[Precision, float]
    copy: float


def measure_ceilings(backend: str, device: int) -> Ceilings | None:
    return _of_cpu() if backend.endswith("-cpu") else _of_gpu(device)


def _of_cpu() -> Ceilings:
    side, count = 2048, 2**26
    a = np.ones((side, side), np.float32)
    source = np.ones(count, np.float32)
    target = np.empty_like(source)
    product = min(seconds_of(lambda: a @ a, 1) for _ in range(10))
    moved = min(seconds_of(lambda: np.copyto(target, source), 1) for _ in range(5))
    return Ceilings("CPU", {"fp32": 2 * side**3 / product}, 2 * source.nbytes / moved)


def _of_gpu(device: int) -> Ceilings | None:
    """By PyTorch, which has the libraries for it; None where it is not there."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    place = torch.device("cuda", device)
    try:
        return _rates(torch, place)
    finally:
        torch.cuda.empty_cache()  # engines need the room


def _rates(torch: Any, place: Any) -> Ceilings:
    side, count = 8192, 2**28
    kinds: dict[Precision, Any] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

    def finished(work: Callable[[], Any]) -> float:
        def call() -> None:
            work()
            torch.cuda.synchronize(place)

        call()
        return min(seconds_of(call, 3) for _ in range(5))

    product = {}
    for precision, dtype in kinds.items():
        a = torch.randn(side, side, device=place).to(dtype)
        product[precision] = 2 * side**3 / finished(lambda a=a: a @ a)  # type: ignore[misc]
    source = torch.ones(count, device=place)
    target = torch.empty_like(source)
    moved = finished(lambda: target.copy_(source))
    return Ceilings(torch.cuda.get_device_name(place), product, 2 * 4 * count / moved)
