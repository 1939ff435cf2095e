"""What ONNX Runtime's CUDA provider is given. That it takes it is tested on a GPU: tests/gpu."""

from __future__ import annotations

import numpy as np
import pytest
from arrays import noise
from host_gpu import HostDevice

from vaedeploy.runtime.onnxruntime_cuda import aligned, aligned_place, provider_options


def test_half_precision_keeps_the_tensor_cores() -> None:
    """Without TF32, ONNX Runtime computes convolutions without tensor cores, in half precision too."""
    assert provider_options(0, "fp32") == {"device_id": "0", "use_tf32": "0"}
    assert provider_options(1, "fp16") == {"device_id": "1", "use_tf32": "1"}
    chosen = {"use_tf32": "0", "gpu_mem_limit": "1000"}
    assert provider_options(0, "fp16", chosen) == {"device_id": "0", **chosen}


@pytest.mark.parametrize("offset", [4, 8])
def test_what_is_not_aligned_is_copied(offset: int) -> None:
    device, values = HostDevice(), noise(2, 4, 3, 3)
    array = device.put(values, offset)
    copy = aligned(array)
    assert copy.address % 16 == 0
    np.testing.assert_array_equal(copy.on_host(), values)
    place = aligned_place(array)
    assert (place.address % 16, place.tensor) == (0, array.tensor)
    assert place.address not in (array.address, copy.address)


def test_what_is_aligned_is_not_copied() -> None:
    device = HostDevice()
    array = device.put(noise(1, 4, 3, 3), 16)
    assert aligned(array) is aligned_place(array) is array


def test_an_array_is_filled() -> None:
    device, values = HostDevice(), noise(2, 4, 3, 3)
    target = device.put(np.zeros_like(values), 4)
    target.copy_from(device.put(values))
    np.testing.assert_array_equal(target.on_host(), values)
