"""Arrays in device memory, and what is needed of a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vaedeploy.values.interface import Tensor


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
