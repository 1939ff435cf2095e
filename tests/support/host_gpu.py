"""A GPU in the host's memory, for what is around the CUDA calls: it keeps the rules that a real one punishes.

Work in a stream happens when somebody waits for it, not before. Addresses must be aligned, scratch memory large enough,
every tensor bound, and the shape within the optimisation profile; a captured graph does what was captured, on the
addresses that it saw then. Engines are run by ONNX Runtime on the bundle's portable graph.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from engine_files import DECODER, RTX4090

from vaedeploy.bundle import Bundle
from vaedeploy.runtime import dlpack
from vaedeploy.runtime.device import Graphs, Memory, OnDevice, Stream
from vaedeploy.runtime.engine import EngineSession
from vaedeploy.runtime.lane import ALIGNMENT
from vaedeploy.runtime.routes import Half
from vaedeploy.values.interface import Tensor

SCRATCH = 1000
"""Bytes of scratch memory that the stand-in wants for each pixel."""


def at(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class HostBuffer:
    """Memory of either kind, aligned as a device's is, and full of rubbish."""

    def __init__(self, size: int) -> None:
        self._kept = np.full(size + ALIGNMENT, 0xA5, np.uint8)
        start = -self._kept.ctypes.data % ALIGNMENT
        self.array = self._kept[start : start + size]
        self.address = self._kept.ctypes.data + start
        self.size = size


class HostStream:
    """Work that waits to be done."""

    handle = 7

    def __init__(self) -> None:
        self.queue: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle

    def put(self, work: Callable[[], None]) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def wait_for(self, stream: HostStream) -> None:
        self.put(stream.synchronize)

    def copy_in(self, source: int, target: int, size: int) -> None:
        self.put(lambda: at(target, size).__setitem__(slice(None), at(source, size)))

    copy_out = copy_within = copy_in

    def copy_rows(self, source: int, source_pitch: int, target: int, target_pitch: int, size: int, count: int) -> None:
        assert size <= min(source_pitch, target_pitch)
        for row in range(count):
            self.copy_within(source + row * source_pitch, target + row * target_pitch, size)

    def synchronize(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recording = []
        work()
        recorded, self.recording = self.recording, None
        return lambda: self.queue.extend(recorded)


@dataclass
class HostDevice:
    """Counts what is asked of it."""

    number: int = 0
    device_bytes: int = 0
    host_bytes: int = 0
    streams: int = 0
    free: int = 1 << 40

    def __post_init__(self) -> None:
        self._of_thread = HostStream()

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def array(self, tensor: Tensor) -> OnDevice:
        return self.put(np.zeros(tensor.shape, tensor.dtype))

    def stream(self) -> HostStream:
        self.streams += 1
        return HostStream()

    def stream_of_thread(self) -> HostStream:
        return self._of_thread

    def free_memory(self) -> int:
        return self.free

    def device_memory(self, size: int) -> HostBuffer:
        self.device_bytes += size
        return HostBuffer(size)

    def host_memory(self, size: int) -> HostBuffer:
        self.host_bytes += size
        return HostBuffer(size)

    def put(self, array: np.ndarray, offset: int = 0) -> OnDevice:
        """A copy of ``array`` in this device's memory, ``offset`` bytes off where memory begins."""
        memory = self.device_memory(array.nbytes + offset)
        at(memory.address + offset, array.nbytes)[...] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return OnDevice(memory.address + offset, Tensor(array.shape, array.dtype), memory, self)


@dataclass
class HostPlan:
    """The engine ``name`` of a bundle. events: what its contexts were told, in order."""

    bundle: Bundle
    name: str
    graphs: Graphs = "recorded"
    settlements: int = 0
    events: list[str] = field(default_factory=list)
    contexts: int = 0

    def __post_init__(self) -> None:
        info = self.bundle.manifest.engines[self.name]
        self.half = Half(self.bundle, info.part, info.identity.backend, (self.name,))
        self.shapes = list(info.identity.shapes.values())
        self.session = onnxruntime.InferenceSession(self.bundle.graph(info.part))

    def settled(self) -> None:
        self.settlements += 1

    def put(self, stream: Any, work: Callable[[], None]) -> None:
        """Into a stream; those of a driver's take it otherwise."""
        stream.put(work)

    def context(self) -> HostContext:
        self.contexts += 1
        return HostContext(self)


class HostContext:
    def __init__(self, plan: HostPlan) -> None:
        self.plan = plan
        self.index = -1
        self.shape: tuple[int, ...] = ()
        self.scratch: Memory | None = None
        self.bound: dict[str, int] = {}

    def set_shape(self, index: int, tensor: str, shape: tuple[int, ...], stream: Stream) -> int:
        assert tensor == self.plan.half.interface.input
        sizes = self.plan.half.interface.pixels(shape)
        assert self.plan.shapes[index].holds(*sizes), f"{sizes} is not within optimisation profile {index}"
        self.index, self.shape, self.scratch = index, shape, None
        self.plan.events.append(f"shape {index} {'x'.join(map(str, sizes))}")
        return SCRATCH * int(np.prod(sizes))

    def set_scratch(self, memory: Memory) -> None:
        assert memory.size >= SCRATCH * int(np.prod(self.plan.half.interface.pixels(self.shape)))
        assert memory.address % ALIGNMENT == 0
        self.scratch = memory

    def bind(self, tensor: str, address: int) -> None:
        assert address % ALIGNMENT == 0
        self.bound[tensor] = address

    def enqueue(self, stream: Any) -> None:
        assert self.scratch is not None
        outputs = self.plan.half.interface.gives(*self.plan.half.interface.pixels(self.shape))
        name = self.plan.half.interface.input
        assert self.bound.keys() == {name, *outputs}
        bound, shape = dict(self.bound), self.shape
        dtype = np.dtype(np.uint8 if name == "image_u8" else np.float32)
        self.plan.events.append("capture" if getattr(stream, "recording", None) is not None else "enqueue")

        def work() -> None:
            given = at(bound[name], Tensor(shape, dtype).size).view(dtype).reshape(shape).copy()
            results = self.plan.session.run(list(outputs), {name: given})
            for (output, tensor), result in zip(outputs.items(), results, strict=True):
                assert (result.shape, result.dtype) == (tensor.shape, tensor.dtype)
                at(bound[output], tensor.size)[...] = result.reshape(-1).view(np.uint8)

        self.plan.put(stream, work)


def stand_in(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    """Let this machine look as if it had the GPU that the engines of ``bundle`` are for; returns that GPU."""
    device = HostDevice()
    version = bundle.manifest.engines[DECODER].identity.backend_version
    engines = "vaedeploy.runtime.engine_candidates"
    for module in (engines, "vaedeploy.runtime.backends"):
        monkeypatch.setattr(f"{module}.find_gpu", lambda number: RTX4090)
    monkeypatch.setattr("vaedeploy.runtime.tensorrt.problem", lambda backend, number: None)
    monkeypatch.setattr("vaedeploy.runtime.tensorrt.load_library", lambda backend: SimpleNamespace(__version__=version))
    monkeypatch.setattr(f"{engines}.CudaDevice", lambda number: device)
    monkeypatch.setattr("vaedeploy.runtime.calls.CudaDevice", lambda number: device)
    monkeypatch.setattr(
        "vaedeploy.runtime.tensorrt.load_plan",
        lambda path, *_: HostPlan(bundle, path.relative_to(bundle.path).as_posix()),
    )
    return device


@dataclass
class Elsewhere:
    """An array in the device's memory, as another library has it."""

    array: OnDevice

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 0


@dataclass
class Opened:
    session: EngineSession
    device: HostDevice
    plans: dict[str, HostPlan]

    @property
    def events(self) -> list[str]:
        (plan,) = self.plans.values()
        return plan.events
