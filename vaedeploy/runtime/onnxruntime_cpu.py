"""ONNX Runtime on the CPU."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaedeploy.errors import BackendError
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.runtime.device import Array, OnDevice, shape_of
from vaedeploy.system.installs import install_command


def measuring_session(path: Path, threads: int = 0) -> Any:
    """A session of ONNX Runtime that runs the nodes of the graph ``path`` unfused, one by one, in the graph's order.

    threads: how many CPU threads it uses; 0 lets ONNX Runtime choose. Raises BackendError with ONNX Runtime's message.
    """
    onnxruntime = onnxruntime_cpu.load_library()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    # Without fusion, every tensor of the graph is computed.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # In the graph's order, a tensor is reduced as soon as it is computed; the default order leaves reductions for the
    # end, with all tensors in memory.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BackendError(f"ONNX Runtime cannot load the graph to measure: {error}") from error


NAME = "onnxruntime-cpu"

PROVIDER = "CPUExecutionProvider"


class Session:
    """One graph, ready to run. Several threads may call it at the same time."""

    def __init__(self, graph: Path, threads: int | None = None, providers: Sequence[Any] = (PROVIDER,)) -> None:
        self.graph = graph
        ort = load_library()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        # The arena keeps the most memory that any size ever took. After one call at 512x512, a full-size decoder held
        # 2.2 GB with it and 0.3 GB without; without it the peak is lower too (1.5 GB against 2.1), in the same time.
        options.enable_cpu_mem_arena = False
        # Errors arrive as exceptions; by default the library would print them to stderr as well.
        options.log_severity_level = 4
        try:
            # With its fallback, ONNX Runtime would go on with the CPU after a failure, and print that to stdout.
            self._session = ort.InferenceSession(graph, options, providers=list(providers), enable_fallback=False)
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot load {graph}: {error}") from error
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, OnDevice] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Any]:
        """The named outputs, each a new array. Raises BackendError with ONNX Runtime's message.

        results, after: not used; ``EngineSession.run`` describes them.
        """
        with self._failures_explained(inputs):
            return self._session.run(outputs, inputs)  # type: ignore[no-any-return]

    @contextmanager
    def _failures_explained(self, inputs: Mapping[str, Array]) -> Iterator[None]:
        """Context in which an exception becomes a BackendError that names the graph and the inputs' shapes."""
        try:
            yield
        except Exception as error:
            shapes = ", ".join(f"{name} {shape_of(array)}" for name, array in inputs.items())
            advice = ". There is not enough memory: give a smaller batch or size" if _is_out_of_memory(error) else ""
            raise BackendError(f"ONNX Runtime failed in {self.graph} on {shapes}: {error}{advice}") from error


def load_library() -> Any:
    """The ``onnxruntime`` module. Raises BackendError, naming what to install, if it cannot be imported."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"ONNX Runtime cannot be imported ({error}). Install it: {install_command('cpu')}"
        ) from error
    return onnxruntime


def problem() -> str | None:
    """Why this backend cannot be used on this machine, and what to do about it; None where it can."""
    try:
        load_library()
    except BackendError as error:
        return str(error)
    return None


def usable_cores() -> int:
    """How many cores this process may use: by its CPU affinity, or by its container's CPU quota if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def _is_out_of_memory(error: Exception) -> bool:
    words = ("allocate memory", "bad_alloc", "out of memory", "smaller than requested bytes")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
