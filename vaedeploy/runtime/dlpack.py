"""Arrays in GPU memory, taken from and handed to the caller through DLPack without a copy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vaedeploy.runtime.cuda import CudaDevice, CudaStream, libraries
from vaedeploy.runtime.device import OnDevice
from vaedeploy.values.interface import Tensor

CUDA = 2
"""The device type of CUDA memory in the DLPack protocol: kDLCUDA."""


def is_on_device(value: Any) -> bool:
    """Whether ``value`` is an array in GPU memory, according to its ``__dlpack_device__``."""
    try:
        return int(value.__dlpack_device__()[0]) == CUDA
    except Exception:  # no such array, or its library fails: the code that reads it says why
        return False


def as_device_array(value: Any, device: CudaDevice, stream: CudaStream, write: bool = False) -> OnDevice:
    """The caller's array ``value`` without a copy. ``stream`` waits for the work that produces it, as DLPack provides.

    write: whether the array will be written to. Raises ValueError if it is on another GPU, is not contiguous, or is
    read-only though it will be written to.
    """
    number = int(value.__dlpack_device__()[1])
    if number != device.number:
        raise ValueError(f"it is on CUDA device {number}, and this VAE on {device.number}")
    with device.active():
        view = libraries().StridedMemoryView.from_dlpack(value, stream.handle)
    if write and view.readonly:
        raise ValueError("it is read-only")
    tensor = Tensor(tuple(view.shape), np.dtype(view.dtype))
    if view.strides is not None and not _contiguous(tensor.shape, tuple(view.strides)):
        raise ValueError("it is not contiguous")
    return OnDevice(view.ptr, tensor, view, device)


def to_caller(array: OnDevice, size: tuple[int, int] | None = None, axes: tuple[int, int] = (1, 2)) -> Any:
    """An array from ``CudaDevice.array`` as one that supports DLPack, owns its memory and has a shape and a dtype.

    size: (height, width), the part that the caller sees of the array's ``axes``; the rest stays in memory.
    """
    full = array.tensor.shape
    strides = tuple(math.prod(full[axis + 1 :]) for axis in range(len(full)))
    shape = list(full)
    for axis, length in zip(axes, size or (), strict=False):
        shape[axis] = length
    memory = libraries().Buffer.from_handle(array.address, array.tensor.size, owner=array.owner)
    return libraries().StridedMemoryView.from_buffer(memory, tuple(shape), strides, dtype=array.tensor.dtype)


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether an array is contiguous. strides: in elements; those of axes with one element make no difference."""
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True
