"""Engines of TensorRT and TensorRT-RTX: one interface under two module names."""

from __future__ import annotations

import importlib
import logging
import weakref
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

from vaedeploy.atomic import reason, write_file
from vaedeploy.cache import cache_folder
from vaedeploy.errors import BackendError, OutputError
from vaedeploy.manifest import Backend
from vaedeploy.runtime import cuda
from vaedeploy.runtime.lane import Memory, Stream

MODULES: dict[Backend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS: dict[Backend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}

logger = logging.getLogger("vaedeploy")


def problem(backend: Backend, device: int = 0) -> str | None:
    """Why ``backend`` would not answer here, and what to do; None where it would."""
    try:
        load_library(backend)
    except BackendError as error:
        return str(error)
    return cuda.problem(device)


def load_library(backend: Backend) -> ModuleType:
    """The backend's module. Raises BackendError, naming what to install, where it does not load."""
    try:
        return importlib.import_module(MODULES[backend])
    except Exception as error:  # one whose libraries are missing raises what it likes
        raise BackendError(
            f"{backend} cannot be imported ({str(error) or type(error).__name__}). Install it: pip install "
            f'"vaedeploy[{EXTRAS[backend]}]"'
        ) from error


def load_plan(path: Path, backend: Backend, sha256: str, cuda_graphs: bool) -> EnginePlan:
    """The engine in a file of that sha256, on the current device. Raises BackendError with TensorRT's last messages."""
    module = load_library(backend)
    log = _log_of(module)
    runtime = module.Runtime(log)
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BackendError(f"{backend} cannot load {path}{log.tail()}")
    cache = RuntimeCache(f"{module.__version__}-{sha256[:32]}.cache") if backend == "tensorrt-rtx" else None
    return EnginePlan(module, log, runtime, engine, cuda_graphs, cache)


class EnginePlan:
    """An engine that is loaded. TensorRT-RTX records CUDA graphs itself; of TensorRT's the lane records them."""

    def __init__(
        self, module: ModuleType, log: Any, runtime: Any, engine: Any, cuda_graphs: bool, cache: RuntimeCache | None
    ) -> None:
        self.records = cuda_graphs and cache is None
        self._module = module
        self._log = log
        self._runtime = runtime  # the engine needs both as long as it is there
        self._engine = engine
        self._config = engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        if cache is not None:
            if cuda_graphs:
                self._config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            cache.join(self._config)
            weakref.finalize(self, cache.keep)  # when the process ends, too

    def context(self) -> EngineContext:
        """A context of its own, without memory yet."""
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise BackendError(f"TensorRT made no execution context{self._log.tail()}")
        return EngineContext(context, self._log)


class EngineContext:
    """An execution context; ``lane.Context`` says what its methods do. Each raises BackendError where TensorRT
    refuses.
    """

    def __init__(self, context: Any, log: Any) -> None:
        self._context = context
        self._log = log
        self._index = -1

    def set_shape(self, index: int, tensor: str, shape: tuple[int, ...], stream: Stream) -> int:
        if index != self._index:
            self._index = -1
            self._check(self._context.set_optimization_profile_async(index, stream.handle), f"profile {index}")
            stream.synchronize()
            self._index = index
        self._check(self._context.set_input_shape(tensor, shape), f"{tensor} of shape {shape}")
        size: int = self._context.update_device_memory_size_for_shapes()
        return size

    def set_scratch(self, memory: Memory) -> None:
        self._context.set_device_memory(memory.address, memory.size)

    def bind(self, tensor: str, address: int) -> None:
        self._check(self._context.set_tensor_address(tensor, address), f"the address of {tensor}")

    def enqueue(self, stream: Stream) -> None:
        self._check(self._context.execute_async_v3(stream.handle), "to run")

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(f"TensorRT refuses {what}{self._log.tail()}")


class RuntimeCache:
    """The kernels that TensorRT-RTX compiled on this machine for an engine, kept in the user's cache from one process
    to the next. TensorRT-RTX itself refuses a file of another version, GPU or driver, and fills an empty one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._cache: Any = None
        self._kept = b""

    def join(self, config: Any) -> None:
        """Let contexts of ``config`` use it."""
        self._cache = config.create_runtime_cache()
        try:
            self._kept = self._path().read_bytes()
            self._cache.deserialize(self._kept)
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("TensorRT-RTX's cache of compiled kernels cannot be read: %s", reason(error))
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write what was compiled since it was read."""
        compiled = bytes(self._cache.serialize())
        if compiled == self._kept:
            return
        try:
            write_file(self._path(), compiled)
        except (OSError, OutputError) as error:
            logger.warning("TensorRT-RTX's cache of compiled kernels cannot be kept: %s", str(error))
        self._kept = compiled

    def _path(self) -> Path:
        return cache_folder("rtx") / self._name


def _log_of(module: ModuleType) -> Any:
    """An ``ILogger`` that passes TensorRT's warnings on, and remembers what it said last."""

    class Log(module.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.lines: deque[str] = deque(maxlen=6)

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.Severity.WARNING:
                self.lines.append(message)
                logger.debug("TensorRT: %s", message)

        def tail(self) -> str:
            return ". TensorRT's last messages:\n  " + "\n  ".join(self.lines) if self.lines else ""

    return Log()
