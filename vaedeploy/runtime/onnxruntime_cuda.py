"""ONNX Runtime on an NVIDIA GPU, through its CUDA provider."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vaedeploy.errors import BackendError
from vaedeploy.gpu import cuda_devices
from vaedeploy.runtime import onnxruntime_cpu

NAME = "onnxruntime-cuda"
PROVIDER = "CUDAExecutionProvider"

INSTALL = 'In an environment without onnxruntime, run: pip install "vaedeploy[cuda]"'


class Session(onnxruntime_cpu.Session):
    """One graph on one GPU. May be called from several threads at once, but not from a process that was forked from
    the one that made it.
    """

    def __init__(
        self, graph: Path, device: int = 0, threads: int | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        chosen = {"device_id": str(device), **(options or {})}
        super().__init__(graph, threads, [(PROVIDER, chosen), "CPUExecutionProvider"])
        if PROVIDER not in self._session.get_providers():  # it falls back to the CPU without an error
            raise BackendError(
                f"ONNX Runtime's CUDA provider did not start on device {device} for {graph}, most often because the "
                f"libraries of CUDA or cuDNN are not found. {INSTALL}"
            )
        self._process = os.getpid()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """As that of the CPU's session. Raises BackendError in a forked process too."""
        if os.getpid() != self._process:
            raise BackendError(
                "this process was forked after the GPU was used, and CUDA does not survive that. Make the VAE in the "
                "new process, or start it with multiprocessing's 'spawn'"
            )
        return super().run(outputs, inputs)


def problem(device: int = 0) -> str | None:
    """Why this backend would not answer here, and what to do; None where it would."""
    if missing := onnxruntime_cpu.problem():
        return missing
    if PROVIDER not in onnxruntime_cpu.load_library().get_available_providers():
        return f"the ONNX Runtime that is installed has no CUDA provider. {INSTALL}"
    count = cuda_devices()
    if device >= count:
        return f"there is no CUDA device {device}: the driver shows {count}"
    return None
