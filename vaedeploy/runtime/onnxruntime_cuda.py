"""ONNX Runtime on an NVIDIA GPU, through its CUDA provider."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from vaedeploy.errors import BackendError
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.runtime.device import Array, OnDevice
from vaedeploy.system.gpu import FORKED, cuda_devices, was_forked
from vaedeploy.system.installs import install_command
from vaedeploy.system.processes import native_call

NAME = "onnxruntime-cuda"

PROVIDER = "CUDAExecutionProvider"

INSTALL = f"In an environment without onnxruntime, run: {install_command('cuda')}"


class Session(onnxruntime_cpu.Session):
    """One graph on one GPU. Several threads may call it at the same time, but not a process that was forked from the
    one that made it.
    """

    def __init__(
        self, graph: Path, device: int = 0, threads: int | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        _load_libraries()
        # TF32 rounds the inputs of float32 convolutions to 10 bits, and float32 bundles are verified without it.
        chosen = {"device_id": str(device), "use_tf32": "0", **(options or {})}
        super().__init__(graph, threads, [(PROVIDER, chosen), "CPUExecutionProvider"])
        if PROVIDER not in self._session.get_providers():  # ONNX Runtime falls back to the CPU without an error
            raise BackendError(
                f"ONNX Runtime's CUDA provider did not start on device {device} for {graph}, most often because the "
                f"libraries of CUDA or cuDNN are not found. {INSTALL}"
            )
        self._process = os.getpid()
        self._device = device

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, OnDevice] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Any]:
        """Like ``run`` of the CPU's session, but with arrays in device memory too; see ``EngineSession.run``. Raises
        BackendError in a forked process too.
        """
        if os.getpid() != self._process:
            raise BackendError(FORKED)
        on_device = {name: array for name, array in inputs.items() if isinstance(array, OnDevice)}
        if not on_device and not results:
            return super().run(outputs, inputs)
        for device_array in on_device.values():
            device_array.wait(after)  # ONNX Runtime runs in a stream of its own, which waits for no other stream
        binding = self._session.io_binding()
        for name, array in inputs.items():
            if isinstance(array, OnDevice):
                self._bind(binding.bind_input, name, array)
            else:
                binding.bind_cpu_input(name, array)
        targets = results or {}
        for name in outputs:
            if name in targets:
                self._bind(binding.bind_output, name, targets[name])
            else:
                binding.bind_output(name)
        with self._failures_explained(inputs), native_call():
            self._session.run_with_iobinding(binding)
        values = dict(zip(outputs, binding.get_outputs(), strict=True))
        return [targets[name] if name in targets else value.numpy() for name, value in values.items()]

    def _bind(self, bind: Callable[..., None], name: str, array: OnDevice) -> None:
        tensor = array.tensor
        bind(name, "cuda", self._device, tensor.dtype.type, tensor.shape, array.address)


def _load_libraries() -> None:
    """Let ONNX Runtime find the libraries of CUDA and cuDNN that pip installed; by itself it finds only PyTorch's."""
    preload = getattr(onnxruntime_cpu.load_library(), "preload_dlls", None)
    if preload is not None:
        with redirect_stdout(StringIO()):  # it prints what it does not find; ``Session`` raises a better message
            preload()


def problem(device: int = 0) -> str | None:
    """Why this backend cannot be used on this machine, and what to do about it; None where it can."""
    if was_forked():
        return FORKED
    if missing := onnxruntime_cpu.problem():
        return missing
    if PROVIDER not in onnxruntime_cpu.load_library().get_available_providers():
        return f"the ONNX Runtime that is installed has no CUDA provider. {INSTALL}"
    count = cuda_devices()
    if device >= count:
        return f"there is no CUDA device {device}: the driver shows {count}"
    return None
