"""CUDA by cuda.core and cuda.bindings: streams, memory and graphs for ``lane``, arrays in device memory for callers."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import BackendError
from vaedeploy.gpu import cuda_devices
from vaedeploy.runtime.lane import HostMemory, OnDevice, Tensor

CUDA = 2
"""The kind of device in DLPack's protocol: kDLCUDA."""


def problem(device: int = 0) -> str | None:
    """Why CUDA cannot be used from Python here, and what to do; None where it can."""
    count = cuda_devices()
    if device >= count:
        return f"there is no CUDA device {device}: the driver shows {count}"
    try:
        import cuda.bindings.driver
        import cuda.core  # noqa: F401
    except ImportError as error:
        return f'cuda.core cannot be imported ({error}). Run: pip install "vaedeploy[rtx]" (or [tensorrt], [cuda])'
    return None


class CudaDevice:
    """A GPU, by its number. Raises BackendError where there is none of that number."""

    def __init__(self, number: int) -> None:
        if missing := problem(number):
            raise BackendError(missing)
        from cuda.core import Device

        self._device = Device(number)
        self.activate()

    def activate(self) -> None:
        """Make it the calling thread's: which device is current is kept for each thread."""
        self._device.set_current()

    def stream(self) -> CudaStream:
        """A queue that does not wait for the default stream."""
        return CudaStream(self._device.create_stream())

    def device_memory(self, size: int) -> CudaMemory:
        """At least ``size`` bytes, which are there when this returns."""
        stream = self._device.default_stream
        try:
            buffer = self._device.allocate(size, stream=stream)
            stream.sync()
        except Exception as error:  # cuda.core's own kinds are not public
            raise BackendError(
                f"there are no {size:,} bytes left on the GPU: {error}. Give a smaller batch or size"
            ) from error
        return CudaMemory(buffer)

    def host_memory(self, size: int) -> PinnedMemory:
        """Page-locked memory of the host."""
        from cuda.core import LegacyPinnedMemoryResource

        return PinnedMemory(LegacyPinnedMemoryResource().allocate(size))


class CudaMemory:
    """A buffer of the device's."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer
        self.address = int(buffer.handle)
        self.size: int = buffer.size


class PinnedMemory:
    """A page-locked buffer, and ``array``: all of it, uint8."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer  # what the array lies in
        self.address = int(buffer.handle)
        self.size: int = buffer.size
        place = (ctypes.c_uint8 * self.size).from_address(self.address)
        self.array: NDArray[np.uint8] = np.ctypeslib.as_array(place)


class CudaStream:
    """A stream of cuda.core's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.handle = int(stream.handle)

    def __cuda_stream__(self) -> tuple[int, int]:
        """By the protocol for streams: its version and the handle."""
        return 0, self.handle

    def wait_for(self, stream: Any) -> None:
        """Let work that comes wait for what is in ``stream`` now."""
        self._stream.wait(stream)

    def copy_in(self, source: HostMemory, target: int, size: int) -> None:
        """From the host to the device."""
        _call("cuMemcpyHtoDAsync", target, source.address, size, self.handle)

    def copy_out(self, source: int, target: HostMemory, size: int) -> None:
        """From the device to the host."""
        _call("cuMemcpyDtoHAsync", target.address, source, size, self.handle)

    def copy_within(self, source: int, target: int, size: int) -> None:
        """From one place on the device to another."""
        _call("cuMemcpyDtoDAsync", target, source, size, self.handle)

    def synchronize(self) -> None:
        """Wait until all that was put in is done."""
        self._stream.sync()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` puts into this stream as a CUDA graph; returns what launches it."""
        from cuda.bindings import driver

        # Other threads may go on allocating memory meanwhile.
        _call("cuStreamBeginCapture", self.handle, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            work()
        finally:
            graph = _call("cuStreamEndCapture", self.handle)
        return _Graph(graph, self.handle)


class _Graph:
    """A recorded graph; calling it puts it into its stream."""

    def __init__(self, graph: Any, stream: int) -> None:
        self._stream = stream
        try:
            self._executable = _call("cuGraphInstantiate", graph, 0)
        finally:
            _call("cuGraphDestroy", graph)

    def __call__(self) -> None:
        _call("cuGraphLaunch", self._executable, self._stream)

    def __del__(self) -> None:
        if hasattr(self, "_executable"):
            _call("cuGraphExecDestroy", self._executable)


def is_on_device(value: Any) -> bool:
    """Whether ``value`` is an array in a GPU's memory, by DLPack's protocol."""
    try:
        return int(value.__dlpack_device__()[0]) == CUDA
    except Exception:  # no such array, or one that its library cannot tell of: whoever reads it says why
        return False


def as_device_array(value: Any, device: CudaDevice, stream: CudaStream) -> OnDevice:
    """An array in device memory without a copy; ``stream`` waits for the work that makes it, as DLPack has it.

    Raises ValueError where it is not contiguous.
    """
    from cuda.core.utils import StridedMemoryView

    view = StridedMemoryView.from_dlpack(value, stream.handle)
    tensor = Tensor(tuple(view.shape), np.dtype(view.dtype))
    if view.strides is not None and not _contiguous(tensor.shape, tuple(view.strides)):
        raise ValueError("it is not contiguous")
    return OnDevice(view.ptr, tensor, view, device)


def new_device_array(device: CudaDevice, tensor: Tensor) -> OnDevice:
    """Device memory for ``tensor``."""
    memory = device.device_memory(tensor.size)
    return OnDevice(memory.address, tensor, memory, device)


def to_caller(array: OnDevice, size: tuple[int, int] | None = None, axes: tuple[int, int] = (1, 2)) -> Any:
    """An array of ``new_device_array`` as one that speaks DLPack, owns its memory and has shape and dtype.

    size: (height, width) to show of it, on its ``axes``; the rest stays in memory.
    """
    from cuda.core.utils import StridedMemoryView

    full = array.tensor.shape
    strides = tuple(math.prod(full[axis + 1 :]) for axis in range(len(full)))
    shape = list(full)
    for axis, length in zip(axes, size or (), strict=False):
        shape[axis] = length
    return StridedMemoryView.from_buffer(array.owner.buffer, tuple(shape), strides, dtype=array.tensor.dtype)


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """strides: in elements. Those of axes with one element make no difference."""
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _call(function: str, *arguments: Any) -> Any:
    """A function of the driver's: its result. Raises BackendError with what the driver says went wrong."""
    from cuda.bindings import driver

    status, *results = getattr(driver, function)(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        _, name = driver.cuGetErrorString(status)
        said = name.decode() if isinstance(name, bytes) else str(status)
        advice = ". Give a smaller batch or size" if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY else ""
        raise BackendError(f"CUDA failed in {function}: {said}{advice}")
    return results[0] if results else None
