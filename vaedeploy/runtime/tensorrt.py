"""Engines of TensorRT and TensorRT-RTX, two modules with the same interface."""

from __future__ import annotations

import hashlib
import importlib
import logging
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from vaedeploy.errors import BackendError
from vaedeploy.runtime import cuda
from vaedeploy.runtime.cuda import CudaDevice
from vaedeploy.runtime.device import Graphs, Memory, Stream
from vaedeploy.system.atomic import write_file
from vaedeploy.system.cache import cache_folder
from vaedeploy.system.gpu import driver_version, find_gpu
from vaedeploy.system.installs import ENGINE_EXTRAS, ENGINE_MODULES, install_command
from vaedeploy.system.messages import LastMessages
from vaedeploy.system.oserrors import reason
from vaedeploy.values.kinds import Backend

log = logging.getLogger(__name__)


def problem(backend: Backend, device: int = 0) -> str | None:
    """Why ``backend`` cannot be used on this machine, and what to do about it; None where it can."""
    try:
        load_library(backend)
    except BackendError as error:
        return str(error)
    return cuda.problem(device)


def load_library(backend: Backend) -> ModuleType:
    """The backend's Python module. Raises BackendError, naming what to install, if it does not load."""
    try:
        return importlib.import_module(ENGINE_MODULES[backend])
    except Exception as error:  # without its shared libraries, a module may raise anything
        raise BackendError(
            f"{backend} cannot be imported ({str(error) or type(error).__name__}). Install it: "
            + install_command(ENGINE_EXTRAS[backend])
        ) from error


def load_plan(
    path: Path, data: bytes, backend: Backend, sha256: str, device: CudaDevice, cuda_graphs: bool
) -> EnginePlan:
    """Load the engine ``data`` onto ``device``. Raises BackendError with TensorRT's last messages.

    path: its file, for errors. sha256: of ``data``; it is not checked here. cuda_graphs: whether the engine runs as
    CUDA graphs.
    """
    module = load_library(backend)
    log = _make_log(module)
    with device.active():
        runtime = module.Runtime(log)
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendError(f"{backend} cannot load {path}{log.messages.quote()}")
        cache = None
        if backend == "tensorrt-rtx":
            cache = RuntimeCache(_cache_name(module.__version__, sha256, device.number), device)
        return EnginePlan(module, device, log, runtime, engine, cuda_graphs, cache)


class EnginePlan:
    """A loaded engine. TensorRT-RTX makes CUDA graphs itself; for TensorRT the lane records them."""

    def __init__(
        self,
        module: ModuleType,
        device: CudaDevice,
        log: Any,
        runtime: Any,
        engine: Any,
        cuda_graphs: bool,
        cache: RuntimeCache | None,
    ) -> None:
        self.graphs: Graphs = "none" if not cuda_graphs else "recorded" if cache is None else "its own"
        self._device = device
        self._log = log
        self._runtime = runtime
        self._engine = engine
        self._cache = cache
        self._config = engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        if cache is not None:
            # Kernels for a size are compiled before it runs. By default they are compiled in the background while a
            # fallback runs: the first images would not come from the kernels that were verified, and the compiled ones
            # would not be kept if the process is stopped before.
            kinds = module.DynamicShapesKernelSpecializationStrategy
            self._config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
            if cuda_graphs:
                self._config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            cache.join(self._config)

    def context(self) -> EngineContext:
        """A new execution context, which has no memory yet."""
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise BackendError(f"TensorRT made no execution context{self._log.messages.quote()}")
        return EngineContext(context, self, self._device)

    def settled(self) -> None:
        """Save the kernels compiled so far: a service that is killed gets no other chance to."""
        if self._cache is not None:
            self._cache.keep()

    def refused(self, what: str) -> BackendError:
        """The BackendError for a request that TensorRT refused."""
        said = self._log.messages.quote()
        return BackendError(f"TensorRT refuses {what}{said}{cuda.SMALLER if 'out of memory' in said.lower() else ''}")

    def __del__(self) -> None:
        # TensorRT's objects do not keep the objects that made them alive, so they are released in this order.
        with suppress(Exception), self._device.active():  # at the end of the process, CUDA may be gone already
            self._config = self._engine = self._runtime = None


class EngineContext:
    """An execution context. ``device.Context`` describes its methods; each raises BackendError if TensorRT refuses."""

    def __init__(self, context: Any, plan: EnginePlan, device: CudaDevice) -> None:
        self._context = context
        self._plan = plan
        self._device = device
        self._index = -1
        self._given = ""

    def set_shape(self, index: int, tensor: str, shape: tuple[int, ...], stream: Stream) -> int:
        if index != self._index:
            self._index = -1
            self._check(self._context.set_optimization_profile_async(index, stream.handle), f"profile {index}")
            stream.synchronize()
            self._index = index
        self._given = f"{tensor} of shape {shape}"
        self._check(self._context.set_input_shape(tensor, shape), self._given)
        size: int = self._context.update_device_memory_size_for_shapes()
        return size

    def set_scratch(self, memory: Memory) -> None:
        self._context.set_device_memory(memory.address, memory.size)

    def bind(self, tensor: str, address: int) -> None:
        self._check(self._context.set_tensor_address(tensor, address), f"the address of {tensor}")

    def enqueue(self, stream: Stream) -> None:
        self._check(self._context.execute_async_v3(stream.handle), f"to run on {self._given}")

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise self._plan.refused(what)

    def __del__(self) -> None:
        with suppress(Exception), self._device.active():  # at the end of the process, CUDA may be gone already
            self._context = None  # released before the plan, which may be freed next


class RuntimeCache:
    """The kernels that TensorRT-RTX compiled on this machine for one engine, kept in the user's cache folder from one
    process to the next.
    """

    def __init__(self, name: str, device: CudaDevice) -> None:
        self._name = name
        self._device = device
        self._cache: Any = None
        self._kept = b""

    def join(self, config: Any) -> None:
        """Read the cache from its file, and let execution contexts of ``config`` use it."""
        self._cache = config.create_runtime_cache()
        try:
            self._kept = self._path().read_bytes()
            if not self._cache.deserialize(self._kept):
                log.warning("TensorRT-RTX does not take the kernels in %s, and compiles them again", self._path())
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("TensorRT-RTX's cache of compiled kernels cannot be read: %s", reason(error))
        if not config.set_runtime_cache(self._cache):
            log.warning("TensorRT-RTX does not take a cache, and compiles kernels in every process")

    def keep(self) -> None:
        """Write the cache to its file if it has changed. A failure is logged, and raises nothing."""
        try:
            with self._device.active():
                compiled = bytes(self._cache.serialize() or b"")
            if compiled and compiled != self._kept:
                write_file(self._path(), compiled)
                self._kept = compiled
        except Exception as error:
            log.warning("TensorRT-RTX's cache of compiled kernels cannot be kept: %s", str(error))

    def _path(self) -> Path:
        return cache_folder("rtx") / self._name


def _cache_name(version: str, sha256: str, device: int) -> str:
    """The name of a cache's file: kernels fit one engine, version of TensorRT-RTX, GPU model and driver."""
    gpu = find_gpu(device)
    model = gpu.name if gpu else "unknown"
    key = f"{version} {model} {driver_version()} {sha256}".encode()
    return f"{hashlib.sha256(key).hexdigest()[:32]}.cache"


def _make_log(module: ModuleType) -> Any:
    """An ``ILogger`` that passes TensorRT's warnings and errors on, and remembers the last of them."""

    class Log(module.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.messages = LastMessages("TensorRT")

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.Severity.WARNING:
                self.messages.add(message)
                log.debug("TensorRT: %s", message)

    return Log()
