"""Rows of arrays in a GPU's memory, beside numpy's, on a stand-in for the device."""

from __future__ import annotations

import numpy as np
import pytest
from host_gpu import HostDevice

from vaedeploy.runtime.rows.arrays import HostArrays
from vaedeploy.runtime.rows.device_arrays import DeviceArrays

HOST = HostArrays()


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


@pytest.mark.parametrize(("shape", "axis"), [((1, 3, 9, 5), 2), ((1, 9, 5, 3), 1), ((2, 3, 9, 4), 2), ((1, 9, 7), 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_rows_are_those_of_numpy(device: HostDevice, shape: tuple[int, ...], axis: int, dtype: type) -> None:
    arrays, host = DeviceArrays(device), np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    there = device.put(host, offset=4)
    for low, high in ((0, 9), (2, 7), (8, 9), (3, 3)):
        wanted = HOST.part(host, axis, low, high)
        part = arrays.part(there, axis, low, high)
        assert part.shape == wanted.shape
        copy = arrays.contiguous(part)
        np.testing.assert_array_equal(copy.on_host(), wanted)
        if high - low > 2:
            inner = arrays.part(part, axis, 1, 3)
            np.testing.assert_array_equal(arrays.contiguous(inner).on_host(), HOST.part(wanted, axis, 1, 3))
            both = arrays.joined([inner, part], axis)
            np.testing.assert_array_equal(both.on_host(), HOST.joined([HOST.part(wanted, axis, 1, 3), wanted], axis))


def test_a_part_is_filled_and_the_rest_is_not(device: HostDevice) -> None:
    arrays, host = DeviceArrays(device), np.zeros((1, 2, 6, 3), np.float32)
    values = np.random.default_rng(0).standard_normal((1, 2, 2, 3)).astype(np.float32)
    target = device.put(host)
    arrays.fill(arrays.part(target, 2, 3, 5), arrays.part(device.put(values), 2, 0, 2))
    HOST.fill(HOST.part(host, 2, 3, 5), values)
    np.testing.assert_array_equal(target.on_host(), host)


def test_what_is_contiguous_is_not_copied(device: HostDevice) -> None:
    arrays, there = DeviceArrays(device), device.put(np.zeros((1, 8, 4), np.float32))
    part = arrays.part(there, 1, 2, 5)
    before = device.device_bytes
    assert arrays.contiguous(part).address == there.address + 2 * 4 * 4
    assert device.device_bytes == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_in_its_rows_alone(device: HostDevice, value: float) -> None:
    arrays, host = DeviceArrays(device), np.zeros((1, 2, 6, 3), np.float32)
    host[0, 1, 4, 2] = value
    there = device.put(host)
    assert arrays.finite(arrays.part(there, 2, 0, 4))
    assert not arrays.finite(arrays.part(there, 2, 4, 5))
