"""The package's runtime in the GPU benchmark, on ONNX Runtime's CUDA provider and on arrays in the GPU's memory."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.measuring import DEVICE, Run
from vaedeploy.runtime import VAE

OPTIONS: dict[str, dict[str, str]] = {"vaedeploy": {}, "vaedeploy, CUDA graphs": {"enable_cuda_graph": "1"}}
"""Name -> options of ONNX Runtime's CUDA provider."""


def open_vae(bundle: Path, backend: str, **options: object) -> VAE:
    """The bundle of the benchmark, which is unverified on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return VAE(bundle, backend, **options)  # type: ignore[arg-type]


def call_of(vae: VAE, part: str, x: Tensor, shape: tuple[int, ...]) -> Run:
    """A call of one half on PyTorch's tensor ``x``. shape: of the result."""
    out = torch.empty(shape, device=DEVICE)

    def decode() -> Tensor:
        return vae.decode(x, output="float", out=out)

    def encode() -> Tensor:
        return torch.from_dlpack(vae.encode(x))

    return decode if part == "decoder" else encode


def behind_runtime(bundle: Path, part: str, x: Tensor, shape: tuple[int, ...]) -> dict[str, Run]:
    """The fused form behind ``VAE``, by names of ``OPTIONS``; nothing where there is no GPU."""
    if DEVICE == "cpu":
        return {}
    x = x.contiguous()
    return {
        name: call_of(open_vae(bundle, "onnxruntime-cuda", provider_options=options), part, x, shape)
        for name, options in OPTIONS.items()
    }
