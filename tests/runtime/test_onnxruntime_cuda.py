"""What ONNX Runtime's CUDA provider is given. That it takes it is tested on a GPU: tests/gpu."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from host_gpu import HostDevice
from tiny_bundle import tiny_bundle
from tiny_inputs import CHANNELS, noise

from vaedeploy.errors import BackendError
from vaedeploy.runtime import onnxruntime_cpu, onnxruntime_cuda
from vaedeploy.runtime.onnxruntime_cuda import BySize, aligned, aligned_place, provider_options


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


def test_each_of_the_sizes_used_last_has_a_session() -> None:
    opened = iter("bcdefg")
    sessions = BySize("a", limit=3)
    assert [sessions.take(size, lambda: next(opened)) for size in (1, 2, 3, 1, 2)] == ["a", "b", "c", "a", "b"]
    assert sessions.take(4, lambda: next(opened)) == "c", "the size used longest ago gives its session"
    assert [sessions.take(size, lambda: next(opened)) for size in (1, 2, 4)] == ["a", "b", "c"]


def test_a_lack_of_memory_leaves_one_session() -> None:
    opened = iter("bcd")
    sessions = BySize("a", limit=2)
    first = sessions.take(1, lambda: next(opened))
    assert not sessions.drop_others(first), "there is no other to let go of"
    assert sessions.drop_others(sessions.take(2, lambda: next(opened)))
    assert [sessions.take(size, lambda: next(opened)) for size in (2, 1, 2)] == ["b", "c", "b"]


def test_all_memory_is_given_back() -> None:
    opened = iter("bcd")
    sessions = BySize("a", limit=2)
    for before in (1, 2):
        sessions.take(before, lambda: next(opened))
    sessions.drop_all()
    assert [sessions.take(size, lambda: next(opened)) for size in (3, 4, 3)] == ["c", "d", "c"]


def test_where_no_session_can_be_opened_another_size_gives_its() -> None:
    def no_room() -> str:
        raise BackendError("ONNX Runtime cannot load decoder.onnx: CUBLAS failure 3: the resource allocation failed")

    sessions = BySize("a", limit=4)
    assert [sessions.take(size, no_room) for size in (1, 2, 1)] == ["a", "a", "a"]


def test_with_a_limit_of_one_all_sizes_share_a_session() -> None:
    sessions = BySize("a", limit=1)
    assert [sessions.take(size, lambda: pytest.fail("a second was opened")) for size in (1, 2, 1)] == ["a", "a", "a"]


@pytest.mark.filterwarnings("ignore:Duplicate provider:UserWarning")
def test_sizes_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU's provider, which stands for CUDA's: results are right, and memory is freed with the last reference.

    It would be memory of the GPU, which must not wait until garbage is collected.
    """
    monkeypatch.setattr(onnxruntime_cuda, "PROVIDER", onnxruntime_cpu.PROVIDER)
    graph = tiny_bundle(tmp_path / "tiny").graph("decoder")
    session, plain = onnxruntime_cuda.Session(graph), onnxruntime_cpu.Session(graph)
    given = [{"latent": noise(1, CHANNELS, rows, 4)} for rows in (2, 3, 4, 2, 3, 4)]
    for inputs in given:
        np.testing.assert_array_equal(session.run(["image"], inputs), plain.run(["image"], inputs))
    first = weakref.ref(session._by_size._sessions.popitem()[1])
    session.release_memory()
    assert first() is None
    np.testing.assert_array_equal(session.run(["image"], given[0]), plain.run(["image"], given[0]))
    gc.disable()
    try:
        gone = weakref.ref(session)
        del session
        assert gone() is None
    finally:
        gc.enable()
