"""How a run by rows makes, cuts and copies its arrays: in the host's memory here, on a GPU in ``device_arrays``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vaedeploy.runtime.rows.store import GIVES_BACK, empty, give_back

__all__ = ["Array", "Arrays", "HostArrays"]

Array = Any
"""An array, or rows of one, of one kind of ``Arrays``. It has a ``shape``."""


class Arrays(Protocol):
    """Arrays in one kind of memory.

    gives_back: whether parts of an array can be given back while the rest is used.
    """

    gives_back: bool

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """A new, uninitialised array."""
        ...

    def part(self, array: Array, axis: int, low: int, high: int) -> Array:
        """The elements [low, high) along ``axis``, which is the same for all parts of an array. Nothing is copied."""
        ...

    def contiguous(self, array: Array) -> Array:
        """The array as a piece takes it: itself where it is contiguous, else a copy."""
        ...

    def joined(self, arrays: Sequence[Array], axis: int) -> Array:
        """A new array: these arrays joined along ``axis``."""
        ...

    def fill(self, target: Array, values: Array) -> None:
        """Copy ``values`` into an array of the same shape."""
        ...

    def finite(self, array: Array) -> bool:
        """Whether no element is NaN or infinity."""
        ...

    def give_back(self, array: Array, axis: int, begin: int, end: int) -> None:
        """Give the memory of [begin, end) along ``axis`` back to the system."""
        ...


class HostArrays:
    """numpy's arrays."""

    gives_back = GIVES_BACK

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """``Arrays.empty``, in memory that can be given back. Raises BackendError where there is none."""
        return empty(shape, dtype)

    def part(self, array: NDArray[Any], axis: int, low: int, high: int) -> NDArray[Any]:
        """``Arrays.part``."""
        return array[(slice(None),) * axis + (slice(low, high),)]

    def contiguous(self, array: NDArray[Any]) -> NDArray[Any]:
        """``Arrays.contiguous``."""
        return np.ascontiguousarray(array)

    def joined(self, arrays: Sequence[NDArray[Any]], axis: int) -> NDArray[Any]:
        """``Arrays.joined``."""
        return np.concatenate(arrays, axis=axis)

    def fill(self, target: NDArray[Any], values: NDArray[Any]) -> None:
        """``Arrays.fill``."""
        target[...] = values

    def finite(self, array: NDArray[Any]) -> bool:
        """``Arrays.finite``."""
        return bool(np.isfinite(array).all())

    def give_back(self, array: NDArray[Any], axis: int, begin: int, end: int) -> None:
        """``Arrays.give_back``."""
        give_back(array, axis, begin, end)
