"""The arrays of a run by rows in the memory of a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vaedeploy.runtime.device import Device, OnDevice
from vaedeploy.values.interface import Tensor

__all__ = ["DeviceArrays", "Strip"]


@dataclass(frozen=True)
class Strip:
    """The elements [low, high) of an array along an axis. They are rows, one for each element of the axes before."""

    array: OnDevice
    axis: int
    low: int
    high: int

    @property
    def tensor(self) -> Tensor:
        """The shape and dtype of a copy."""
        before, after = self.array.tensor.shape[: self.axis], self.array.tensor.shape[self.axis + 1 :]
        return Tensor((*before, self.high - self.low, *after), self.array.tensor.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return self.tensor.shape

    @property
    def count(self) -> int:
        """How many rows of bytes there are."""
        return math.prod(self.array.tensor.shape[: self.axis])

    @property
    def pitch(self) -> int:
        """Bytes from where one row begins to where the next one does."""
        return self.array.tensor.size // max(1, self.count)

    @property
    def size(self) -> int:
        """Bytes of a row."""
        return self.tensor.size // max(1, self.count)

    @property
    def address(self) -> int:
        """Where the first row begins."""
        return self.array.address + self.pitch // max(1, self.array.tensor.shape[self.axis]) * self.low


class DeviceArrays:
    """``Arrays`` on a GPU. Each array has a block of memory of its own, which is freed with it.

    A call returns when its copies are done. The device must be active.
    """

    gives_back = False

    def __init__(self, device: Device) -> None:
        self.device = device

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> OnDevice:
        """``Arrays.empty``. Raises BackendError where there is no memory for it."""
        tensor = Tensor(shape, np.dtype(dtype))
        memory = self.device.device_memory(max(1, tensor.size))
        return OnDevice(memory.address, tensor, memory, self.device)

    def part(self, array: OnDevice | Strip, axis: int, low: int, high: int) -> Strip:
        """``Arrays.part``."""
        if isinstance(array, Strip):
            assert array.axis == axis
            return Strip(array.array, axis, array.low + low, array.low + high)
        return Strip(array, axis, low, high)

    def contiguous(self, array: OnDevice | Strip) -> OnDevice:
        """``Arrays.contiguous``."""
        if isinstance(array, OnDevice):
            return array
        if array.count == 1:
            return OnDevice(array.address, array.tensor, array.array.owner, self.device)
        return self.joined([array], array.axis)

    def joined(self, arrays: Sequence[Strip], axis: int) -> OnDevice:
        """``Arrays.joined``."""
        before, after = arrays[0].shape[:axis], arrays[0].shape[axis + 1 :]
        places = np.cumsum([0, *(array.shape[axis] for array in arrays)]).tolist()
        result = self.empty((*before, places[-1], *after), arrays[0].tensor.dtype)
        for array, low, high in zip(arrays, places[:-1], places[1:], strict=True):
            self.fill(Strip(result, axis, low, high), array)
        return result

    def fill(self, target: Strip, values: Strip) -> None:
        """``Arrays.fill``."""
        assert (target.shape, target.axis) == (values.shape, values.axis)
        if not values.tensor.size:
            return
        stream = self.device.stream_of_thread()
        stream.copy_rows(values.address, values.pitch, target.address, target.pitch, values.size, values.count)
        stream.synchronize()

    def finite(self, array: Strip) -> bool:
        """``Arrays.finite``, of a copy in the host's memory."""
        return bool(np.isfinite(self.contiguous(array).on_host()).all())

    def give_back(self, array: Any, axis: int, begin: int, end: int) -> None:
        """``Arrays.give_back``, which a GPU's memory cannot."""
        raise NotImplementedError
