"""A half by rows on a GPU: ONNX Runtime's CPU provider stands for CUDA's, and the host's memory for the GPU's."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from host_gpu import HostBuffer, HostDevice
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError
from vaedeploy.runtime import VAE, onnxruntime_cpu, onnxruntime_cuda
from vaedeploy.runtime.device import OnDevice
from vaedeploy.runtime.rows import indexing, on_gpu
from vaedeploy.runtime.rows.half import RowsHalf
from vaedeploy.values.kinds import Form, Part

CHANNELS, FACTOR, LARGE = 4, 4, 20

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate provider:UserWarning")


class Small(HostDevice):
    """Has no memory for a tensor between pieces that is larger than ``most`` bytes, ``times`` times."""

    most, times = 1 << 40, 0

    def put(self, array: NDArray[Any], offset: int = 0) -> OnDevice:
        times, self.times = self.times, 0
        there = super().put(array, offset)
        self.times = times
        return there

    def device_memory(self, size: int) -> HostBuffer:
        if size > self.most and self.times:
            self.times -= 1
            raise BackendError(f"there are no {size:,} bytes left on the GPU (out of memory)")
        return super().device_memory(size)


class Whole(onnxruntime_cuda.Session):
    """Has no memory for batches with more than ``LARGE`` rows. It counts what it is asked."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tried = self.released = 0

    def run(self, outputs: Any, inputs: Any, results: Any = None, after: Any = ()) -> list[Any]:
        self.tried += 1
        (array,) = inputs.values()
        if onnxruntime_cuda.shape_of(array)[2] > LARGE:
            try:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
            except RuntimeError as error:
                raise BackendError(f"ONNX Runtime failed: {error}") from error
        return super().run(outputs, inputs, results, after)

    def release_memory(self) -> None:
        self.released += 1
        super().release_memory()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Small:
    made = Small()
    monkeypatch.setattr(on_gpu, "CudaDevice", lambda number: made)
    cpu_provider(monkeypatch)
    return made


def cpu_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it stand for CUDA's."""
    monkeypatch.setattr(onnxruntime_cuda, "PROVIDER", onnxruntime_cpu.PROVIDER)
    monkeypatch.setattr(onnxruntime_cuda, "MEMORY", "cpu")


@contextmanager
def no_garbage_collected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def runner(bundle: Bundle, part: Part = "decoder", form: Form = "onnxruntime", **options: str) -> on_gpu.GpuRunner:
    return on_gpu.GpuRunner(bundle, part, Whole(bundle.graph(part, form)), 0, 1, options)


def latents(batch: int, rows: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((batch, CHANNELS, rows, columns)).astype(np.float32)


def on_cpu(bundle: Bundle, part: Part, outputs: list[str], given: NDArray[Any]) -> list[NDArray[Any]]:
    half = RowsHalf(bundle, part, threads=1)
    _, rows, columns = half.size(given)
    return half.run(half.plan(rows, columns, 0), outputs, given)


@pytest.mark.parametrize("free", [1 << 40, 1])
def test_arrays_of_the_host(tiny_vae_bundle: Bundle, device: Small, free: int) -> None:
    """The bits of the CPU's rows, whose kernels it has here, whatever is free."""
    made, given, outputs = runner(tiny_vae_bundle), latents(2, 50, 31), ["image", "image_u8", "finite"]
    device.free = free
    wanted = on_cpu(tiny_vae_bundle, "decoder", outputs, given)
    for found, expected in zip(made.run(outputs, {"latent": given}), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)
    out = np.zeros_like(wanted[1])
    found, _ = made.run(["image_u8", "finite"], {"latent": given}, {"image_u8": out})
    assert found is out
    np.testing.assert_array_equal(out, wanted[1])


def test_arrays_of_the_device_stay_there(tiny_vae_bundle: Bundle, device: Small) -> None:
    made, given = runner(tiny_vae_bundle), latents(2, 40, 33)
    (image, finite) = on_cpu(tiny_vae_bundle, "decoder", ["image", "finite"], given)
    place = device.put(np.zeros_like(image), offset=4)
    host_bytes = device.host_bytes
    found, flags = made.run(["image", "finite"], {"latent": device.put(given, offset=4)}, {"image": place})
    assert found is place
    assert device.host_bytes == host_bytes
    np.testing.assert_array_equal(place.on_host(), image)
    np.testing.assert_array_equal(flags, finite)


@pytest.mark.parametrize("there", [False, True])
def test_an_encoder(tiny_vae_bundle: Bundle, device: Small, there: bool) -> None:
    made = runner(tiny_vae_bundle, "encoder")
    given = np.random.default_rng(0).uniform(-1, 1, (1, 3, 30 * FACTOR, 21 * FACTOR)).astype(np.float32)
    outputs = list(tiny_vae_bundle.manifest.interface("encoder").outputs)
    wanted = on_cpu(tiny_vae_bundle, "encoder", outputs, given)
    places = {name: device.put(np.zeros_like(array)) for name, array in zip(outputs, wanted, strict=True)}
    name = made.inputs[0]
    found = made.run(outputs, {name: device.put(given) if there else given}, places if there else None)
    for array, expected in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(array.on_host() if there else array, expected)


def test_an_item_that_is_not_finite(tiny_vae_bundle: Bundle, device: Small) -> None:
    given = latents(3, 30, 9)
    given[1, 0, 29, 8] = np.nan
    (flags,) = runner(tiny_vae_bundle).run(["finite"], {"latent": given})
    assert flags.tolist() == [True, False, True]


def test_a_size_fails_once(tiny_vae_bundle: Bundle, device: Small, caplog: pytest.LogCaptureFixture) -> None:
    """A size that is too large is tried again when there is more memory, and sizes that fit run whole."""
    made = runner(tiny_vae_bundle)
    whole: Any = made._whole
    large, small = latents(1, 50, 8), latents(1, 5, 8)
    with caplog.at_level(logging.WARNING):
        for given in (large, small, large):
            made.run(["image"], {"latent": given})
    assert (whole.tried, whole.released) == (2, 1)
    assert caplog.text.count("Failed to allocate memory") == caplog.text.count("It is computed by rows instead") == 1
    device.free *= 2
    for _ in range(2):
        made.run(["image"], {"latent": large})
    assert (whole.tried, whole.released) == (3, 2)


def test_rows_that_find_no_memory_are_tried_with_the_least(
    tiny_vae_bundle: Bundle, device: Small, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with convolutions that take little memory beside their tensors, unless the caller chose others."""
    searches: list[str] = []
    options_of = onnxruntime_cuda.provider_options

    def watched(*arguments: Any) -> dict[str, str]:
        searches.append(arguments[2]["cudnn_conv_algo_search"])
        return options_of(*arguments)

    made, given = runner(tiny_vae_bundle), latents(1, 90, 80)
    monkeypatch.setattr(onnxruntime_cuda, "provider_options", watched)
    made.run(["image"], {"latent": given})
    assert set(searches) == {"HEURISTIC"}
    searches.clear()
    device.most, device.times = 200_000, 1  # an array between pieces, before any is opened
    with caplog.at_level(logging.WARNING):
        (found,) = made.run(["image"], {"latent": given})
    assert set(searches) == {"DEFAULT"}
    np.testing.assert_array_equal(found, on_cpu(tiny_vae_bundle, "decoder", ["image"], given)[0])
    assert "tried once more in as little memory as possible" in caplog.text
    device.times = 9
    refused = r"bytes left on the GPU.* It failed in as little memory as possible, too: .*bytes left on the GPU"
    with pytest.raises(BackendError, match=refused):
        made.run(["image"], {"latent": given})


def test_what_is_given_and_wanted_finds_no_memory(tiny_vae_bundle: Bundle, device: Small) -> None:
    """Smaller sizes may have it, as they may what rows lack."""
    made, given = runner(tiny_vae_bundle), latents(1, 50, 31)
    whole: Any = made._whole
    for most in (given.nbytes - 1, 3 * 200 * 124 * 4 - 1):
        device.most, device.times = most, 1
        (found,) = made.run(["image"], {"latent": given})
        np.testing.assert_array_equal(found, on_cpu(tiny_vae_bundle, "decoder", ["image"], given)[0])
        assert device.times == 0
    assert (whole.tried, whole.released) == (1, 3)


@pytest.mark.parametrize("there", [False, True])
def test_a_batch_whose_tensors_are_too_large_runs_in_groups(
    tiny_vae_bundle: Bundle, device: Small, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """The provider numbers a tensor's elements in 32 bits: beyond that, its images are wrong."""
    given, outputs = latents(5, 8, 8), ["image", "finite"]
    given[3, 0, 0, 0] = np.nan
    wanted = Whole(tiny_vae_bundle.graph("decoder", "onnxruntime")).run(outputs, {"latent": given})
    table = RowsHalf(tiny_vae_bundle, "decoder").table
    most = max(np.prod(cut.at(8, 8)) for cut in table.cuts)
    monkeypatch.setattr(indexing, "MOST_ELEMENTS", 4 * most + most // 2)
    made = runner(tiny_vae_bundle)
    whole: Any = made._whole
    place = device.put(np.zeros_like(wanted[0])) if there else np.zeros_like(wanted[0])
    for results in ({}, {"image": place}):
        whole.tried = 0
        image, finite = made.run(outputs, {"latent": device.put(given) if there else given}, results)
        assert whole.tried == 2, "groups of three and two"
        if results:
            assert image is place
            image = place.on_host() if there else place
        np.testing.assert_allclose(image, wanted[0], atol=1e-5)
        assert finite.tolist() == [True, True, True, False, True]


def test_an_item_whose_tensors_are_too_large_runs_by_rows(
    tiny_vae_bundle: Bundle, device: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "MOST_ELEMENTS", 1000)
    made, given = runner(tiny_vae_bundle), latents(2, 8, 8)
    whole: Any = made._whole
    (found,) = made.run(["image"], {"latent": given})
    assert whole.tried == 0
    np.testing.assert_array_equal(found, on_cpu(tiny_vae_bundle, "decoder", ["image"], given)[0])


@pytest.mark.parametrize("form", ["portable", "onnxruntime"])
def test_too_many_scores_for_one_softmax(
    demo_bundle: Bundle, device: Small, monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    """The form for ONNX Runtime computes them in blocks. The portable one has them in one tensor."""
    monkeypatch.setattr(indexing, "MOST_SCORES", 16**2)
    made = runner(demo_bundle, form=form)
    whole: Any = made._whole
    for batch, columns, tried in ((3, 4, 3), (1, 5, 0)):  # one item has as many as may be, and more
        whole.tried = 0
        given = np.zeros((batch, demo_bundle.manifest.latent.channels, 4, columns), np.float32)
        made.run(["image"], {"latent": given})
        assert whole.tried == (tried if form == "portable" else 1)


def test_memory_goes_back_with_the_runner(tiny_vae_bundle: Bundle, device: Small) -> None:
    """It would be the GPU's, which must not wait until garbage is collected."""
    made = runner(tiny_vae_bundle)
    made.run(["image"], {"latent": latents(1, 30, 8)})
    gone = weakref.ref(made)
    with no_garbage_collected():
        del made
        assert gone() is None


def test_the_session_that_failed_is_gone_while_rows_run(
    tiny_vae_bundle: Bundle, device: Small, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Although whoever reads the log may keep what was said: its arena has the memory that rows are to have."""

    class Full:
        def run(self, *arguments: Any) -> list[Any]:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")

    whole = onnxruntime_cuda.Session(tiny_vae_bundle.graph("decoder", "onnxruntime"))
    whole._by_size._first = Full()
    full, there = weakref.ref(whole._by_size._first), []
    monkeypatch.setattr(device, "free_memory", lambda: there.append(full()) or device.free, raising=False)
    with no_garbage_collected(), caplog.at_level(logging.WARNING):
        on_gpu.GpuRunner(tiny_vae_bundle, "decoder", whole, 0, 1).run(["image"], {"latent": latents(1, 5, 8)})
    assert "It is computed by rows instead" in caplog.text
    assert there == [None, None]


def test_the_arrays_of_a_try_by_rows_that_failed_are_gone_before_the_next(
    tiny_vae_bundle: Bundle, device: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, take, taken = onnxruntime_cpu.running, device.device_memory, []
    during: list[int] = []
    after: list[int] = []

    def taking(size: int) -> HostBuffer:
        taken.append(weakref.ref(memory := take(size)))
        return memory

    def alive() -> int:
        return sum(memory() is not None for memory in taken)

    def full() -> Any:
        during.append(alive())
        if len(during) == 3:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        return running()

    made = runner(tiny_vae_bundle)
    monkeypatch.setattr(device, "device_memory", taking, raising=False)
    monkeypatch.setattr(onnxruntime_cpu, "running", full)
    monkeypatch.setattr(made._whole, "release_memory", lambda: after.append(alive()))
    with no_garbage_collected():
        made.run(["image"], {"latent": latents(1, 90, 80)})
    assert during[2] > 0
    assert after == [0, 0]  # the whole graph failed, and then the rows


def test_a_device_that_only_onnx_runtime_can_use(tiny_vae_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here cuda.core finds none. The lack of memory is told all the same."""
    cpu_provider(monkeypatch)
    with pytest.raises(
        BackendError, match=r"Failed to allocate memory .* It cannot be computed by rows: there is no CUDA"
    ):
        runner(tiny_vae_bundle).run(["image"], {"latent": latents(1, 50, 8)})


def test_a_limit_of_the_caller_holds(tiny_vae_bundle: Bundle, device: Small) -> None:
    device.free = 1 << 34
    assert runner(tiny_vae_bundle)._free() == int(0.7 * ((1 << 34) - on_gpu.LIBRARIES))
    assert runner(tiny_vae_bundle, gpu_mem_limit="1000000")._free() == 1_000_000


def test_other_failures_and_bundles_without_pieces(
    tiny_vae_bundle: Bundle, device: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runner(tiny_vae_bundle)
    with pytest.raises(BackendError, match="ONNX Runtime failed in"):
        made.run(["image"], {"latent": latents(1, 4, 4)[:, :3]})
    monkeypatch.delitem(tiny_vae_bundle.manifest.rows, "decoder")
    with pytest.raises(BackendError, match="Failed to allocate memory"):
        made.run(["image"], {"latent": latents(1, 50, 8)})


def test_the_backend_of_a_vae(tiny_vae_bundle: Bundle, device: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "problem", lambda number: None)
    monkeypatch.setattr(onnxruntime_cuda, "Session", Whole)
    given, told = latents(1, 50, 8), []
    with VAE(tiny_vae_bundle.path, "onnxruntime-cuda", progress=lambda *of: told.append(of)) as vae:
        image = vae.decode(given)
    np.testing.assert_array_equal(image, on_cpu(tiny_vae_bundle, "decoder", ["image_u8"], given)[0])
    assert told[-1] == ("The decoder, 200x32 by rows", 1, 1)
