"""Arrays in device memory, and protocols for the streams, memory and engines of a device.

``cuda`` and ``tensorrt`` implement the protocols for NVIDIA GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vaedeploy.values.interface import Tensor


class Memory(Protocol):
    """A block of memory that is freed with its last reference. Its size is in bytes."""

    address: int
    size: int


class HostMemory(Memory, Protocol):
    """Page-locked host memory; ``array`` is a uint8 view of all of it."""

    array: NDArray[np.uint8]


class Stream(Protocol):
    """A queue of work on a device.

    ``copy_in`` queues a copy from the host to the device, ``copy_out`` one to the host, and ``copy_within`` one inside
    device memory, of ``size`` bytes between two addresses. With page-locked host memory they return at once.
    ``copy_rows`` queues a copy inside device memory of ``count`` rows of ``size`` bytes; rows are ``source_pitch`` and
    ``target_pitch`` bytes apart.
    """

    handle: int

    def wait_for(self, stream: Any) -> None:
        """Let work queued from now on wait for what is in ``stream``, an object with ``__cuda_stream__``, now."""
        ...

    def copy_in(self, source: int, target: int, size: int) -> None: ...
    def copy_out(self, source: int, target: int, size: int) -> None: ...
    def copy_within(self, source: int, target: int, size: int) -> None: ...
    def copy_rows(
        self, source: int, source_pitch: int, target: int, target_pitch: int, size: int, count: int
    ) -> None: ...
    def synchronize(self) -> None: ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` puts into this stream, without running it; return a function that runs it."""
        ...


class Device(Protocol):
    """A GPU, as far as a lane needs one."""

    def active(self) -> AbstractContextManager[None]:
        """Context in which this is the calling thread's current device; afterwards the previous one is again."""
        ...

    def stream(self) -> Stream: ...

    def stream_of_thread(self) -> Stream:
        """The calling thread's stream, for what a call waits for beforehand and reads afterwards. It is made once per
        thread, not once per call.
        """
        ...

    def free_memory(self) -> int:
        """Bytes of device memory that nobody uses."""
        ...

    def device_memory(self, size: int) -> Memory: ...
    def host_memory(self, size: int) -> HostMemory: ...

    def array(self, tensor: Tensor) -> OnDevice:
        """An aligned, uninitialised array, in memory that may be handed to the runtime's caller."""
        ...


class Context(Protocol):
    """An execution context of an engine, in memory that its user provides."""

    def set_shape(self, index: int, tensor: str, shape: tuple[int, ...], stream: Stream) -> int:
        """Choose an optimisation profile and set the input's shape; return the bytes of scratch memory they need."""
        ...

    def set_scratch(self, memory: Memory) -> None: ...
    def bind(self, tensor: str, address: int) -> None: ...
    def enqueue(self, stream: Stream) -> None: ...


Graphs = Literal["none", "recorded", "its own"]
"""Which CUDA graphs launch an engine's work: "none", graphs "recorded" by the lane, or the engine's own."""


class Plan(Protocol):
    """A loaded engine."""

    graphs: Graphs

    def context(self) -> Context: ...

    def settled(self) -> None:
        """Called when a shape has run for the first time: what was compiled for it may be saved now."""
        ...


@dataclass(frozen=True)
class OnDevice:
    """A contiguous array in device memory. owner: the object that keeps the memory alive."""

    address: int
    tensor: Tensor
    owner: Any
    device: Device

    def __getitem__(self, items: slice) -> OnDevice:
        """A range of the batch's items, as an array on the same memory."""
        start, stop, _ = items.indices(self.tensor.shape[0])
        if (start, stop) == (0, self.tensor.shape[0]):
            return self
        tensor = Tensor((stop - start, *self.tensor.shape[1:]), self.tensor.dtype)
        item_size = self.tensor.size // self.tensor.shape[0]
        return OnDevice(self.address + start * item_size, tensor, self.owner, self.device)

    def wait(self, streams: Sequence[Any]) -> None:
        """Wait until the work that is in ``streams`` now is done. The device must be active."""
        stream = self.device.stream_of_thread()
        for other in streams:
            stream.wait_for(other)
        stream.synchronize()

    def copy_from(self, other: Array) -> None:
        """Fill the array with another of the same shape and dtype, from either memory, and wait until that is done. The
        device must be active.
        """
        stream = self.device.stream_of_thread()
        if isinstance(other, OnDevice):
            stream.copy_within(other.address, self.address, self.tensor.size)
        else:
            other = np.ascontiguousarray(other)
            stream.copy_in(other.ctypes.data, self.address, self.tensor.size)
        stream.synchronize()

    def copy_to(self, target: NDArray[Any]) -> None:
        """Fill a contiguous array of the same shape and dtype in host memory, and wait until that is done. The device
        must be active.
        """
        stream = self.device.stream_of_thread()
        stream.copy_out(self.address, target.ctypes.data, self.tensor.size)
        stream.synchronize()

    def on_host(self) -> NDArray[Any]:
        """A copy of the array in host memory. The device must be active."""
        copy = np.empty(self.tensor.shape, self.tensor.dtype)
        self.copy_to(copy)
        return copy


Array = NDArray[Any] | OnDevice
"""An array in host memory, or one in device memory."""


def tensor_of(array: Array) -> Tensor:
    """The shape and dtype of an array in either memory."""
    return array.tensor if isinstance(array, OnDevice) else Tensor(array.shape, array.dtype)


def shape_of(array: Array) -> tuple[int, ...]:
    """The shape of an array in either memory."""
    return tensor_of(array).shape
