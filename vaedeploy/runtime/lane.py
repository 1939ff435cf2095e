"""One execution context of an engine, with its stream and memory: one call at a time goes through it.

What it needs of CUDA and TensorRT is said here, as protocols; ``cuda`` and ``tensorrt`` have them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import BackendError

logger = logging.getLogger("vaedeploy")

ALIGNMENT = 256
"""Bytes that TensorRT wants addresses of tensors and of its scratch memory to be multiples of."""


class Memory(Protocol):
    """Memory that is let go with its last reference."""

    address: int
    size: int


class HostMemory(Memory, Protocol):
    """Page-locked memory of the host; ``array`` is all of it, uint8."""

    array: NDArray[np.uint8]


class Stream(Protocol):
    """A queue of work on a device. Copies between addresses are put into it; from and to page-locked memory they return
    at once. Sizes are bytes.
    """

    handle: int

    def wait_for(self, stream: Any) -> None:
        """Let work that comes wait for what is in ``stream`` now, which has ``__cuda_stream__``."""
        ...

    def copy_in(self, source: int, target: int, size: int) -> None: ...
    def copy_out(self, source: int, target: int, size: int) -> None: ...
    def copy_within(self, source: int, target: int, size: int) -> None: ...
    def synchronize(self) -> None: ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` puts into this stream, without running it; returns what runs it."""
        ...


class Device(Protocol):
    """A GPU, as far as a lane needs one."""

    def active(self) -> AbstractContextManager[None]:
        """It is the calling thread's device inside, and afterwards the one that was."""
        ...

    def stream(self) -> Stream: ...

    def stream_of_thread(self) -> Stream:
        """The calling thread's own, for what a call waits for before it and reads after it: none is made each time."""
        ...

    def device_memory(self, size: int) -> Memory: ...
    def host_memory(self, size: int) -> HostMemory: ...


class Context(Protocol):
    """An execution context with memory of the user's."""

    def set_shape(self, index: int, tensor: str, shape: tuple[int, ...], stream: Stream) -> int:
        """Choose an optimisation profile and the input's shape; returns the bytes of scratch memory that it takes."""
        ...

    def set_scratch(self, memory: Memory) -> None: ...
    def bind(self, tensor: str, address: int) -> None: ...
    def enqueue(self, stream: Stream) -> None: ...


Graphs = Literal["none", "recorded", "its own"]
"""Whether an engine's work is launched as CUDA graphs, and who makes them: the lane, or the engine itself."""


class Plan(Protocol):
    """A loaded engine."""

    graphs: Graphs

    def context(self) -> Context: ...

    def settled(self) -> None:
        """A shape has run for the first time: what was compiled for it may be kept."""
        ...


@dataclass(frozen=True)
class Tensor:
    """What an input or output is to be: (B, ...) of a dtype, contiguous."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @cached_property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class OnDevice:
    """An array in the device's memory, contiguous. owner: what keeps it there."""

    address: int
    tensor: Tensor
    owner: Any
    device: Device

    def __getitem__(self, items: slice) -> OnDevice:
        """Some items of the batch, one after the other, in the same memory."""
        start, stop, _ = items.indices(self.tensor.shape[0])
        if (start, stop) == (0, self.tensor.shape[0]):
            return self
        tensor = Tensor((stop - start, *self.tensor.shape[1:]), self.tensor.dtype)
        item = self.tensor.size // self.tensor.shape[0]
        return OnDevice(self.address + start * item, tensor, self.owner, self.device)

    def wait(self, streams: Sequence[Any]) -> None:
        """Until what is in ``streams`` now is done. The device must be active, as for ``on_host``."""
        stream = self.device.stream_of_thread()
        for other in streams:
            stream.wait_for(other)
        stream.synchronize()

    def on_host(self) -> NDArray[Any]:
        """A copy of it in the host's memory."""
        there, stream = np.empty(self.tensor.shape, self.tensor.dtype), self.device.stream_of_thread()
        stream.copy_out(self.address, there.ctypes.data, self.tensor.size)
        stream.synchronize()
        return there


Array = NDArray[Any] | OnDevice
"""Of the host's, or in device memory."""


def shape_of(array: Array) -> tuple[int, ...]:
    """Of either kind."""
    return array.tensor.shape if isinstance(array, OnDevice) else array.shape


@dataclass(frozen=True)
class Work:
    """What a lane is to run: an optimisation profile on one input, host or device, and where each output goes.

    results: for outputs that somebody wants, an array to fill or device memory. Of the others only their ``outputs``
    are known; TensorRT writes them, and nobody reads them.
    """

    index: int
    name: str
    given: Array
    outputs: Mapping[str, Tensor]
    results: Mapping[str, Array]


class Lane:
    """See the module. ``key`` is the optimisation profile and the input's shape that the context is set up for: doing
    the same again is quickest.

    A CUDA graph is of the addresses that it was captured with, and void once its context is changed. So work that comes
    a second time in a row goes through memory of the lane's own from then on, where it can be recorded, and what is the
    caller's in device memory is copied within the device. Other work drops the graph: there are no more than lanes.
    """

    def __init__(self, device: Device, plan: Plan) -> None:
        self.key: Hashable = None
        self._device = device
        self._plan = plan
        self._context = plan.context()
        self._stream = device.stream()
        self._launch: Callable[[], None] | None = None
        self._bound: dict[str, int] = {}
        self._staging: dict[str, HostMemory] = {}
        self._memory: dict[str, Memory] = {}
        self._settled: set[Hashable] = set()

    def run(self, work: Work, after: Sequence[Any] = ()) -> None:
        """Do ``work`` and return when it is done. after: streams whose work it waits for."""
        key = work.index, shape_of(work.given)
        try:
            self._run(work, key, after)
        except BaseException:
            # What is in the stream must be over before its memory, and the caller's, is used for something else.
            with suppress(Exception):
                self._stream.synchronize()
            raise
        if key not in self._settled:
            self._settled.add(key)
            self._plan.settled()

    def _run(self, work: Work, key: Hashable, after: Sequence[Any]) -> None:
        for stream in after:
            self._stream.wait_for(stream)
        own = key == self.key and self._plan.graphs != "none"
        addresses = {work.name: self._give(work, own)} | {name: self._place(name, work, own) for name in work.outputs}
        if key != self.key:
            self._set_up(work, key)
        if addresses != self._bound:
            self._launch = None
            for name, address in addresses.items():
                self._context.bind(name, address)
            self._bound = addresses
        self._enqueue(record=own and self._plan.graphs == "recorded")
        self._take(work, addresses)

    def _give(self, work: Work, own: bool) -> int:
        """The address of the input on the device."""
        given = work.given
        if isinstance(given, OnDevice):
            if given.address % ALIGNMENT == 0 and not own:
                return given.address
            target = self._reserve(work.name, given.tensor.size).address
            self._stream.copy_within(given.address, target, given.tensor.size)
            return target
        staged = self._stage(work.name, given.nbytes)
        staged.array[: given.nbytes].view(given.dtype).reshape(given.shape)[...] = given
        target = self._reserve(work.name, given.nbytes).address
        self._stream.copy_in(staged.address, target, given.nbytes)
        return target

    def _place(self, name: str, work: Work, own: bool) -> int:
        """Where TensorRT writes an output: where it is wanted, if it may, else in memory of the lane's own."""
        result = work.results.get(name)
        if isinstance(result, OnDevice) and result.address % ALIGNMENT == 0 and not own:
            return result.address
        return self._reserve(name, work.outputs[name].size).address

    def _set_up(self, work: Work, key: Hashable) -> None:
        # What fails in here leaves the context in a state that has no name.
        self.key, self._launch, self._bound = None, None, {}
        scratch = self._context.set_shape(work.index, work.name, shape_of(work.given), self._stream)
        self._context.set_scratch(self._reserve("", scratch))
        self.key = key

    def _enqueue(self, record: bool) -> None:
        if record and self._launch is None:
            try:
                self._launch = self._stream.capture(lambda: self._context.enqueue(self._stream))
            except BackendError as error:  # not every engine can be captured
                self._plan.graphs = "none"
                logger.warning("CUDA graphs are not used, since one could not be recorded: %s", error)
        if self._launch is None:
            self._context.enqueue(self._stream)
        else:
            self._launch()

    def _take(self, work: Work, addresses: Mapping[str, int]) -> None:
        """Bring the outputs to where they are wanted, and wait until all is done."""
        waiting: list[tuple[NDArray[Any], HostMemory]] = []
        for name, result in work.results.items():
            size = work.outputs[name].size
            if isinstance(result, OnDevice):
                if result.address != addresses[name]:
                    self._stream.copy_within(addresses[name], result.address, size)
            else:
                staged = self._stage(name, size)
                self._stream.copy_out(addresses[name], staged.address, size)
                waiting.append((result, staged))
        self._stream.synchronize()
        for array, staged in waiting:
            array[...] = staged.array[: array.nbytes].view(array.dtype).reshape(array.shape)

    def _reserve(self, name: str, size: int) -> Memory:
        """Device memory of this lane's own for ``name`` ("" for scratch), at least ``size`` bytes."""
        there = self._memory.get(name)
        if there is None or there.size < size:
            self._memory.pop(name, None)  # first, so that both need not fit at once
            there = None
            there = self._memory[name] = self._device.device_memory(max(size, ALIGNMENT))
        return there

    def _stage(self, name: str, size: int) -> HostMemory:
        there = self._staging.get(name)
        if there is None or there.size < size:
            there = self._staging[name] = self._device.host_memory(size)
        return there
