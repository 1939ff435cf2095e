"""The rates that this machine cannot exceed, as measured here: those of matrix products and of copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from vaedeploy.pipeline.turns import seconds_of
from vaedeploy.runtime.candidate import HOST
from vaedeploy.values.kinds import Precision


class Ceilings(msgspec.Struct, frozen=True):
    """The rates that a device was measured to reach.

    device: "CPU", or the GPU's name.
    product: floating-point operations per second in a large matrix product, by precision.
    copy: bytes per second in a large copy, those read plus those written.
    """

    device: str
    product: Mapping[Precision, float]
    copy: float


def measure_ceilings(backend: str, device: int) -> Ceilings | None:
    """The ceilings of the CPU or the GPU, whichever ``backend`` computes on; None where they cannot be measured.

    device: the number of the CUDA device.
    """
    return _of_cpu() if backend in HOST else _of_gpu(device)


def _of_cpu() -> Ceilings:
    side, count = 2048, 2**26
    a = np.ones((side, side), np.float32)
    source = np.ones(count, np.float32)
    target = np.empty_like(source)
    product_seconds = min(seconds_of(lambda: a @ a, 1) for _ in range(10))
    copy_seconds = min(seconds_of(lambda: np.copyto(target, source), 1) for _ in range(5))
    return Ceilings("CPU", {"fp32": 2 * side**3 / product_seconds}, 2 * source.nbytes / copy_seconds)


def _of_gpu(device: int) -> Ceilings | None:
    """Measure with PyTorch, which has the libraries for it; None where it is not installed or finds no GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    gpu, setting = torch.device("cuda", device), torch.backends.cuda.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "ieee"
    try:
        return _rates(torch, gpu)
    finally:
        setting.fp32_precision = before
        torch.cuda.empty_cache()  # PyTorch would keep the memory, and engines need it


def _rates(torch: Any, gpu: Any) -> Ceilings:
    side, count = 8192, 2**28
    dtypes: dict[Precision, Any] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

    def fastest(work: Callable[[], Any]) -> float:
        def call() -> None:
            work()
            torch.cuda.synchronize(gpu)

        call()
        return min(seconds_of(call, 3) for _ in range(5))

    product = {}
    for precision, dtype in dtypes.items():
        a = torch.randn(side, side, device=gpu).to(dtype)
        product[precision] = 2 * side**3 / fastest(lambda a=a: a @ a)  # type: ignore[misc]
    source = torch.ones(count, device=gpu)
    target = torch.empty_like(source)
    copy_seconds = fastest(lambda: target.copy_(source))
    return Ceilings(torch.cuda.get_device_name(gpu), product, 2 * 4 * count / copy_seconds)
