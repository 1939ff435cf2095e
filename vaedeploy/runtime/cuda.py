"""CUDA through cuda.core and cuda.bindings: streams, memory and graphs for ``lane``, and memory for results."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import BackendError, InputError
from vaedeploy.runtime.device import OnDevice
from vaedeploy.system.gpu import FORKED, device_problem, driver_version, was_forked
from vaedeploy.system.installs import install_command
from vaedeploy.values.interface import Tensor

DEFAULT_STREAMS = (0, 1, 2)
"""Handles of the streams that every device has: CU_STREAM_LEGACY (1, also given as 0), CU_STREAM_PER_THREAD (2)."""

SMALLER = ". Give a smaller batch or size, or free memory there"
"""Advice at the end of messages about a lack of memory on the GPU."""

MOST_PITCH = 2**31 - 1
"""The largest pitch, in bytes, that the driver takes for a copy of rows (CU_DEVICE_ATTRIBUTE_MAX_PITCH)."""

OLDEST_DRIVER = 13.0
"""The lowest CUDA version that the driver must support: the version of the wheels that are installed for engines."""


def problem(device: int = 0) -> str | None:
    """Why CUDA cannot be used from Python on this machine, and what to do about it; None where it can."""
    if was_forked():
        return FORKED
    if missing := device_problem(device):
        return missing
    known = driver_version()
    if known is None or float(known) < OLDEST_DRIVER:
        return f"the GPU's driver knows CUDA {known}, and {OLDEST_DRIVER} is needed: install a newer driver"
    try:
        import cuda.bindings.driver
        import cuda.core  # noqa: F401
    except ImportError as error:
        return f"cuda.core cannot be imported ({error}). Run: {install_command('rtx')} (or [tensorrt], [cuda])"
    return None


class CudaDevice:
    """The GPU of that number. Raises BackendError if it does not exist or cannot be used."""

    def __init__(self, number: int) -> None:
        if missing := problem(number):
            raise BackendError(missing)
        self.number = number
        before = _call("cuCtxGetCurrent")
        try:
            self._device = libraries().Device(number)
            self._device.set_current()
            self._context = _call("cuCtxGetCurrent")
            self._allocating = self._device.create_stream()
        except Exception as error:
            raise self._failed("the GPU cannot be used", error) from error
        finally:
            _call("cuCtxSetCurrent", before)
        self._of_thread = threading.local()

    def active(self) -> AbstractContextManager[None]:
        """Context in which this is the calling thread's current device; afterwards the previous one is again."""
        return _Current(self._context)

    def stream(self) -> CudaStream:
        """A new stream, which does not wait for the default stream."""
        with self.active():
            try:
                return CudaStream(self._device.create_stream())
            except Exception as error:
                raise self._failed("no stream can be made", error) from error

    def stream_of_thread(self) -> CudaStream:
        """The calling thread's stream, which is made once."""
        stream: CudaStream | None = getattr(self._of_thread, "stream", None)
        if stream is None:
            stream = self._of_thread.stream = self.stream()
        return stream

    def free_memory(self) -> int:
        """Bytes of device memory that no process uses."""
        with self.active():
            return int(_call("cuMemGetInfo")[0])

    def device_memory(self, size: int) -> CudaMemory:
        """At least ``size`` bytes of device memory. When freed they go back to the device and not into a pool: engines
        take gigabytes, which a pool would withhold from other libraries.
        """
        with self.active():
            return CudaMemory(self, _call("cuMemAlloc", size, requested=size), size)

    def host_memory(self, size: int) -> PinnedMemory:
        """``size`` bytes of page-locked host memory."""
        with self.active():
            try:
                return PinnedMemory(self, _call("cuMemAllocHost", size), size)
            except BackendError as error:
                raise BackendError(f"{size:,} bytes of the host's memory cannot be locked: {error}") from error

    def array(self, tensor: Tensor) -> OnDevice:
        """An array from the device's memory pool, for a result that the caller gets. It is not initialised."""
        with self.active():
            try:
                buffer = self._device.allocate(tensor.size, stream=self._allocating)
                self._allocating.sync()
            except Exception as error:
                raise self._failed(f"{tensor.size:,} bytes for a result cannot be had", error, SMALLER) from error
        return OnDevice(int(buffer.handle), tensor, ResultMemory(self, buffer), self)

    def _failed(self, what: str, error: Exception, advice: str = "") -> BackendError:
        """The BackendError for an exception of cuda.core, which has exception classes of its own."""
        return BackendError(f"{what} (CUDA device {self.number}): {error}{advice}")


class CudaMemory:
    """A block of device memory, freed with its last reference."""

    def __init__(self, device: CudaDevice, pointer: Any, size: int) -> None:
        self.address = int(pointer)
        self.size = size
        self._device = device

    def __del__(self) -> None:
        with suppress(Exception), self._device.active():  # at the end of the process, CUDA may be gone already
            _call("cuMemFree", self.address)


class ResultMemory:
    """Memory from the device's pool that a caller's array uses.

    When its last reference goes, it returns to the pool after the work that is in the default stream by then. PyTorch
    uses that stream unless told otherwise, so work queued there need not keep its arrays alive.
    """

    def __init__(self, device: CudaDevice, buffer: Any) -> None:
        self._device = device
        self._buffer = buffer
        self._stream = libraries().LEGACY_DEFAULT_STREAM

    def __del__(self) -> None:
        with suppress(Exception), self._device.active():  # at the end of the process, CUDA may be gone already
            self._buffer.close(self._stream)


class PinnedMemory:
    """Page-locked host memory. ``array`` is a uint8 view of all of it, which does not keep the memory alive."""

    def __init__(self, device: CudaDevice, pointer: Any, size: int) -> None:
        self.address = int(pointer)
        self.size = size
        memory = (ctypes.c_uint8 * size).from_address(self.address)
        self.array: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
        self._device = device

    def __del__(self) -> None:
        with suppress(Exception), self._device.active():  # at the end of the process, CUDA may be gone already
            _call("cuMemFreeHost", self.address)


class CudaStream:
    """A stream of cuda.core, with copies and capture on it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.handle = int(stream.handle)

    def __cuda_stream__(self) -> tuple[int, int]:
        """The version of the CUDA stream protocol, and the stream's handle."""
        return 0, self.handle

    def wait_for(self, stream: Any) -> None:
        """Let work queued from now on wait for what is in ``stream`` now. Raises BackendError if it cannot."""
        try:
            self._stream.wait(stream._stream if isinstance(stream, CudaStream) else stream)
        except Exception as error:
            raise BackendError(f"the stream {stream!r} cannot be waited for: {error}") from error

    def copy_in(self, source: int, target: int, size: int) -> None:
        """Queue a copy of ``size`` bytes from the host to the device."""
        _call("cuMemcpyHtoDAsync", target, source, size, self.handle)

    def copy_out(self, source: int, target: int, size: int) -> None:
        """Queue a copy of ``size`` bytes from the device to the host."""
        _call("cuMemcpyDtoHAsync", target, source, size, self.handle)

    def copy_within(self, source: int, target: int, size: int) -> None:
        """Queue a copy of ``size`` bytes from one address on the device to another."""
        _call("cuMemcpyDtoDAsync", target, source, size, self.handle)

    def copy_rows(self, source: int, source_pitch: int, target: int, target_pitch: int, size: int, count: int) -> None:
        """Queue a copy of ``count`` rows of ``size`` bytes; rows are a pitch of bytes apart."""
        if max(source_pitch, target_pitch) > MOST_PITCH:
            for row in range(count):
                self.copy_within(source + row * source_pitch, target + row * target_pitch, size)
            return
        copy = libraries().driver.CUDA_MEMCPY2D()
        copy.srcMemoryType = copy.dstMemoryType = libraries().driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice, copy.srcPitch, copy.dstDevice, copy.dstPitch = source, source_pitch, target, target_pitch
        copy.WidthInBytes, copy.Height = size, count
        _call("cuMemcpy2DAsync", copy, self.handle)

    def synchronize(self) -> None:
        """Wait until all queued work is done. Raises BackendError if any of it failed."""
        _call("cuStreamSynchronize", self.handle)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` puts into this stream as a CUDA graph; return a function that launches the graph."""
        # In this mode other threads may go on allocating memory during the capture.
        mode = libraries().driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _call("cuStreamBeginCapture", self.handle, mode)
        try:
            work()
        except BaseException:
            with suppress(BackendError):  # the capture is void, and the exception in flight says why
                _call("cuGraphDestroy", _call("cuStreamEndCapture", self.handle))
            raise
        return _Graph(_call("cuStreamEndCapture", self.handle), self.handle)


class _Graph:
    """A recorded CUDA graph; calling it launches the graph in its stream."""

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
            with suppress(Exception):  # at the end of the process, CUDA may be gone already
                _call("cuGraphExecDestroy", self._executable)


def check_stream(stream: Any, device: CudaDevice) -> None:
    """Raise InputError if ``stream`` is not a CUDA stream, or is one of another GPU."""
    if not hasattr(stream, "__cuda_stream__"):
        raise InputError(
            f"stream is of type {type(stream).__name__}; it must be a CUDA stream, which has __cuda_stream__, such as "
            "torch.cuda.current_stream()"
        )
    handle = int(stream.__cuda_stream__()[1])
    if handle in DEFAULT_STREAMS:
        return
    number = int(_call("cuStreamGetDevice", handle))
    if number != device.number:
        raise InputError(f"stream is of CUDA device {number}, and this VAE on {device.number}")


class _Current:
    """Context in which a CUDA context is the calling thread's current one. Afterwards the previous one is again, since
    other libraries rely on it.
    """

    def __init__(self, context: Any) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._before = _call("cuCtxGetCurrent")
        if int(self._before) != int(self._context):
            _call("cuCtxSetCurrent", self._context)

    def __exit__(self, *_: object) -> None:
        if int(self._before) != int(self._context):
            _call("cuCtxSetCurrent", self._before)


@cache
def libraries() -> Any:
    """The names used from cuda.core and cuda.bindings, imported once: an import takes a microsecond each time."""
    from cuda.bindings import driver
    from cuda.core import LEGACY_DEFAULT_STREAM, Buffer, Device
    from cuda.core.utils import StridedMemoryView

    return SimpleNamespace(
        driver=driver,
        Buffer=Buffer,
        Device=Device,
        LEGACY_DEFAULT_STREAM=LEGACY_DEFAULT_STREAM,
        StridedMemoryView=StridedMemoryView,
    )


def _call(function: str, *arguments: Any, requested: int | None = None) -> Any:
    """Call a function of the CUDA driver and return its result.

    requested: the bytes that an allocation asks for, which the message then names. Raises BackendError with the
    driver's description of the error.
    """
    driver = libraries().driver
    status, *results = getattr(driver, function)(*arguments)
    if status == driver.CUresult.CUDA_SUCCESS:
        return results[0] if len(results) == 1 else results
    _, text = driver.cuGetErrorString(status)
    said = text.decode() if isinstance(text, bytes) else str(status)
    if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        room = "there is no room" if requested is None else f"there are no {requested:,} bytes"
        raise BackendError(f"{room} left on the GPU ({said}){SMALLER}")
    raise BackendError(f"CUDA failed in {function}: {said}")
