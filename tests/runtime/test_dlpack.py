"""What is an array on a device, and what is made of it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from host_gpu import Elsewhere, HostDevice

from vaedeploy.runtime import dlpack
from vaedeploy.values.interface import Tensor


def test_arrays_are_taken_where_they_lie() -> None:
    """What cuda.core makes of an array, tried with one of the host's: without a driver it cannot hold another."""
    stream = SimpleNamespace(handle=-1)  # DLPack's word for: nothing to wait for
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    taken = dlpack.as_device_array(array, HostDevice(), stream)  # type: ignore[arg-type]
    assert (taken.address, taken.tensor) == (array.ctypes.data, Tensor((2, 3, 4), np.dtype(np.float32)))
    for part in (array[:, :, ::2], array.transpose(0, 2, 1), array[:, 1:]):
        with pytest.raises(ValueError, match="it is not contiguous"):
            dlpack.as_device_array(part, HostDevice(), stream)  # type: ignore[arg-type]
    one = dlpack.as_device_array(array[:1, 1:], HostDevice(), stream)  # type: ignore[arg-type]
    assert one.address == array[:1, 1:].ctypes.data  # of one item, the batch's stride makes no difference


@pytest.mark.parametrize(("value", "answer"), [(np.zeros(3), False), ("text", False), (Elsewhere(None), True)])  # type: ignore[arg-type]
def test_what_is_on_a_device(value: object, answer: bool) -> None:
    assert dlpack.is_on_device(value) is answer
