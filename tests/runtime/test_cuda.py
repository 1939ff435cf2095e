"""The CUDA calls themselves: cuda.core and cuda.bindings run for real, on a driver that has the host's memory."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from arrays import noise
from cuda.core import LEGACY_DEFAULT_STREAM
from cuda_driver import COMPILER, load_driver, show_devices
from engine_files import SIZES, write_profile
from host_gpu import HostPlan, at
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, InputError, LatentError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.runtime import VAE, cuda, dlpack
from vaedeploy.system.gpu import FORKED, Gpu, cuda_devices, find_gpu
from vaedeploy.values.interface import Tensor

CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the stand-in for the driver is compiled")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return load_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def driver(library: ctypes.CDLL) -> Iterator[ctypes.CDLL]:
    """With its one device, for this test alone."""
    if cuda_devices() > 0:
        pytest.skip("there is a real driver here")
    room = ctypes.c_uint64.in_dll(library, "room")
    before = room.value
    show_devices(library, 1)
    yield library
    show_devices(library, 0)
    room.value = before


@pytest.fixture
def device(driver: ctypes.CDLL) -> Iterator[cuda.CudaDevice]:
    """It is the test's current one, as it is of who makes arrays on it."""
    made = cuda.CudaDevice(0)
    with made.active():
        yield made


def test_what_the_driver_tells(driver: ctypes.CDLL) -> None:
    assert find_gpu() == Gpu("Host", "8.9", 16.0)
    assert cuda.problem(0) is None
    assert cuda.problem(1) == "there is no CUDA device 1: the driver shows 1"
    with pytest.raises(BackendError, match="there is no CUDA device 1"):
        cuda.CudaDevice(1)


def test_without_a_device() -> None:
    assert cuda.problem(0) == f"there is no CUDA device 0: the driver shows {cuda_devices() or 'none'}"


def test_copies_wait_in_their_stream(device: cuda.CudaDevice) -> None:
    stream, there, back = device.stream(), device.device_memory(256), device.host_memory(100)
    given = device.host_memory(100)
    given.array[:], back.array[:] = 7, 0
    at(there.address, 100)[...] = 1
    stream.copy_in(given.address, there.address, 100)
    stream.copy_out(there.address, back.address, 100)
    assert at(there.address, 100).tolist() == [1] * 100
    stream.synchronize()
    assert back.array.tolist() == [7] * 100
    assert there.address % 256 == 0


def test_rows_are_copied_by_their_pitches(device: cuda.CudaDevice) -> None:
    stream, source, target = device.stream(), device.device_memory(60), device.device_memory(60)
    at(source.address, 60)[...], at(target.address, 60)[...] = np.arange(60), 0
    stream.copy_rows(source.address + 3, 20, target.address + 1, 12, 5, 3)
    stream.synchronize()
    wanted = np.zeros((5, 12), int)
    wanted[:3, 1:6] = np.arange(60).reshape(3, 20)[:, 3:8]
    assert at(target.address, 60).tolist() == wanted.reshape(-1).tolist()


def test_rows_that_begin_far_apart_are_copied(device: cuda.CudaDevice) -> None:
    """Rows of an 8192x8192 picture's tokens are one row of 2 GiB, of which a strip is copied."""
    stream, source, target = device.stream(), device.device_memory(20), device.device_memory(20)
    at(source.address, 20)[...], at(target.address, 20)[...] = np.arange(20), 0
    stream.copy_rows(source.address + 3, 2**31, target.address, 2**40, 5, 1)
    stream.synchronize()
    assert at(target.address, 7).tolist() == [3, 4, 5, 6, 7, 0, 0]


def test_what_is_free_is_told(device: cuda.CudaDevice, driver: ctypes.CDLL) -> None:
    ctypes.c_uint64.in_dll(driver, "room").value = 12345
    assert device.free_memory() == 12345


def test_one_stream_waits_for_another(device: cuda.CudaDevice) -> None:
    first, second = device.stream(), device.stream()
    a, b, c = (device.device_memory(16) for _ in range(3))
    at(a.address, 16)[...], at(b.address, 16)[...], at(c.address, 16)[...] = 5, 0, 0
    first.copy_within(a.address, b.address, 16)
    second.wait_for(first)
    second.copy_within(b.address, c.address, 16)
    second.synchronize()
    assert at(c.address, 16).tolist() == [5] * 16


def test_a_graph_runs_when_it_is_launched(device: cuda.CudaDevice) -> None:
    stream = device.stream()
    a, b = device.device_memory(16), device.device_memory(16)
    at(a.address, 16)[...], at(b.address, 16)[...] = 1, 0
    launch = stream.capture(lambda: stream.copy_within(a.address, b.address, 16))
    stream.synchronize()
    assert at(b.address, 16).tolist() == [0] * 16
    for number in (2, 3):
        at(a.address, 16)[...] = number
        launch()
        stream.synchronize()
        assert at(b.address, 16).tolist() == [number] * 16
    with pytest.raises(RuntimeError, match="in between"):
        stream.capture(lambda: (_ for _ in ()).throw(RuntimeError("in between")))
    assert stream.capture(lambda: None)  # the stream is no longer recording


def test_there_is_no_room(driver: ctypes.CDLL, device: cuda.CudaDevice) -> None:
    ctypes.c_uint64.in_dll(driver, "room").value = 1000
    with pytest.raises(BackendError) as refused:
        device.device_memory(2000)
    assert str(refused.value) == (
        "there are no 2,000 bytes left on the GPU (out of memory). Give a smaller batch or size, or free memory there"
    )
    with pytest.raises(BackendError, match="2,000 bytes of the host's memory cannot be locked"):
        device.host_memory(2000)
    with pytest.raises(BackendError) as refused:
        device.array(Tensor((2000,), np.dtype(np.uint8)))
    assert str(refused.value).startswith("2,000 bytes for a result cannot be had (CUDA device 0): ")
    assert str(refused.value).endswith(". Give a smaller batch or size, or free memory there")
    assert device.device_memory(500).size == 500


def test_a_result_outlives_what_reads_it(driver: ctypes.CDLL, device: cuda.CudaDevice) -> None:
    """Its memory goes back in the order of the default stream, whoever lets go of it."""
    freed_in = ctypes.c_void_p.in_dll(driver, "freed_in")
    freed_in.value = 0x77
    view = dlpack.to_caller(device.array(Tensor((2, 8), np.dtype(np.float32))))
    capsule = view.__dlpack__(stream=1)
    del view
    assert freed_in.value == 0x77  # somebody has it still
    del capsule
    assert freed_in.value == 1  # CU_STREAM_LEGACY


def test_memory_goes_back(driver: ctypes.CDLL, device: cuda.CudaDevice) -> None:
    freed = ctypes.c_uint64.in_dll(driver, "freed")
    before = freed.value
    memory = [device.device_memory(1000), device.host_memory(1000)]
    memory.clear()
    assert freed.value == before + 2


def test_the_callers_device_stays_its_own(driver: ctypes.CDLL, device: cuda.CudaDevice) -> None:
    from cuda.bindings import driver as calls

    calls.cuCtxSetCurrent(calls.CUcontext(0x99))
    try:
        with device.active():
            assert int(calls.cuCtxGetCurrent()[1]) == 0x10
        device.device_memory(100)
        device.stream()
        cuda.CudaDevice(0)
        assert int(calls.cuCtxGetCurrent()[1]) == 0x99
    finally:
        calls.cuCtxSetCurrent(calls.CUcontext(0))


def test_an_old_driver_is_told(driver: ctypes.CDLL) -> None:
    version = ctypes.c_int.in_dll(driver, "known")
    before, version.value = version.value, 12040
    try:
        assert cuda.problem(0) == "the GPU's driver knows CUDA 12.4, and 13.0 is needed: install a newer driver"
    finally:
        version.value = before


def test_what_is_no_stream(device: cuda.CudaDevice) -> None:
    with pytest.raises(InputError) as refused:
        cuda.check_stream("stream", device)
    assert str(refused.value) == (
        "stream is of type str; it must be a CUDA stream, which has __cuda_stream__, such as "
        "torch.cuda.current_stream()"
    )


def test_a_stream_of_another_gpu(driver: ctypes.CDLL, device: cuda.CudaDevice) -> None:
    cuda.check_stream(device.stream(), device)
    cuda.check_stream(LEGACY_DEFAULT_STREAM, device)
    stream = device.stream()
    driver.set_stream_device(ctypes.c_void_p(stream.handle), 1)
    with pytest.raises(InputError, match="stream is of CUDA device 1, and this VAE on 0"):
        cuda.check_stream(stream, device)


ASK_IN_CHILD = """
import multiprocessing, sys, ctypes
driver = ctypes.CDLL(sys.argv[1])
ctypes.c_int.in_dll(driver, "devices").value = 1
from vaedeploy.runtime import cuda
from vaedeploy.runtime import onnxruntime_cuda
def ask(answers):
    answers.put((cuda.problem(0), onnxruntime_cuda.problem(0)))
assert cuda.problem(0) is None
fork = multiprocessing.get_context("fork")
answers = fork.Queue()
child = fork.Process(target=ask, args=(answers,))
child.start()
print(*set(answers.get(timeout=60)))
child.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_is_told(library: ctypes.CDLL) -> None:
    command = [sys.executable, "-W", "ignore", "-c", ASK_IN_CHILD, library._name]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == FORKED


def test_an_array_goes_out_and_comes_back_in(device: cuda.CudaDevice) -> None:
    made = device.array(Tensor((2, 4, 6, 3), np.dtype(np.uint8)))
    at(made.address, 144)[...] = np.arange(144, dtype=np.uint8)
    whole = dlpack.to_caller(made)
    assert dlpack.is_on_device(whole)
    taken = dlpack.as_device_array(whole, device, device.stream())
    assert (taken.address, taken.tensor) == (made.address, made.tensor)
    np.testing.assert_array_equal(taken.on_host(), np.arange(144, dtype=np.uint8).reshape(2, 4, 6, 3))
    part = dlpack.to_caller(made, (3, 5), (1, 2))
    assert (part.shape, part.strides, part.dtype) == ((2, 3, 5, 3), (72, 18, 3, 1), np.uint8)
    with pytest.raises(ValueError, match="it is not contiguous"):
        dlpack.as_device_array(part, device, device.stream())


# ------------------------------------------------------------------------------------------------------ the whole VAE


@dataclass
class DriverPlan(HostPlan):
    """An engine whose work is put into the driver's streams."""

    driver: ctypes.CDLL | None = None
    kept: list[Any] = field(default_factory=list)

    def put(self, stream: Any, work: Callable[[], None]) -> None:
        call = CALL(lambda _: work())
        self.kept.append(call)
        assert self.driver is not None
        self.driver.cuLaunchHostFunc(ctypes.c_void_p(stream.handle), call, None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("cuda")
    write_profile(folder, precision='"fp32"', shapes=SIZES)
    return build_engines(tiny_bundle(folder / "tiny"), ["mine"], folder=folder)


@pytest.fixture
def vae(driver: ctypes.CDLL, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> VAE:
    """All of it but the engines' own work: this machine has the driver, and the GPU that the engines are for."""
    monkeypatch.setattr(
        "vaedeploy.runtime.tensorrt.load_plan",
        lambda path, *_: DriverPlan(bundle, path.relative_to(bundle.path).as_posix(), driver=driver),
    )
    return VAE(bundle.path, "tensorrt-rtx")


@pytest.fixture
def expected(bundle: Bundle) -> VAE:
    return VAE(bundle.path, "onnxruntime-cpu")


def put(device: cuda.CudaDevice, array: np.ndarray) -> Any:
    """An array as another library has it in the device's memory."""
    made = device.array(Tensor(array.shape, array.dtype))
    at(made.address, array.nbytes)[...] = array.reshape(-1).view(np.uint8)
    return dlpack.to_caller(made)


def read(view: Any) -> np.ndarray:
    """What a caller would see of an array in the device's memory, which must be kept meanwhile."""
    last = sum((length - 1) * stride for length, stride in zip(view.shape, view.strides, strict=True))
    place = at(view.ptr, view.dtype.itemsize * (1 + last))
    strides = [stride * view.dtype.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(place.view(view.dtype), view.shape, strides)


def test_arrays_of_the_host(vae: VAE, expected: VAE) -> None:
    for seed in range(4):  # the third is a graph
        latent = noise(3, 2, 2, 2, seed=seed)
        image = vae.decode(latent)
        np.testing.assert_array_equal(image, expected.decode(latent))
        np.testing.assert_array_equal(vae.encode(image), expected.encode(image))


def test_arrays_of_the_device(vae: VAE, expected: VAE, device: cuda.CudaDevice) -> None:
    latent = noise(2, 2, 2, 3) / 4  # so that the image is one that may be encoded
    image = vae.decode(put(device, latent))
    kept = read(image).copy()
    np.testing.assert_array_equal(kept, expected.decode(latent))
    vae.decode(put(device, noise(2, 2, 2, 3, seed=1)))
    np.testing.assert_array_equal(read(image), kept)
    raw = vae.decode(put(device, latent), output="float", size=(7, 10))
    np.testing.assert_array_equal(read(raw), expected.decode(latent, output="float", size=(7, 10)))
    out = put(device, np.zeros((2, 3, 8, 12), np.float32))
    assert vae.decode(put(device, latent), output="float", out=out) is out
    again = vae.encode(out)
    np.testing.assert_array_equal(read(again), expected.encode(read(out)))


def test_a_stream_of_the_callers(vae: VAE, expected: VAE, device: cuda.CudaDevice) -> None:
    latent = noise(1, 2, 2, 2)
    given, source, stream = put(device, np.zeros_like(latent)), put(device, latent), device.stream()
    stream.copy_within(source.ptr, given.ptr, latent.nbytes)
    image = vae.decode(given, stream=stream)
    np.testing.assert_array_equal(read(image), expected.decode(latent))


@pytest.mark.parametrize("again", [False, True])
def test_arrays_of_the_device_in_a_thread_without_a_context(
    vae: VAE, expected: VAE, device: cuda.CudaDevice, again: bool
) -> None:
    latent = noise(2, 2, 2, 3) / 4
    given, image = put(device, latent), put(device, np.clip(noise(2, 3, 8, 12), -1, 1))
    with ThreadPoolExecutor(1) as pool:
        for _ in range(1 + again):
            decoded, encoded = pool.submit(lambda: (vae.decode(given), vae.encode(image))).result()
    np.testing.assert_array_equal(read(decoded), expected.decode(latent))
    np.testing.assert_array_equal(read(encoded), expected.encode(read(image)))


def test_what_may_not_be_written_to(vae: VAE, device: cuda.CudaDevice) -> None:
    from cuda.core import Buffer
    from cuda.core.utils import StridedMemoryView

    made = device.array(Tensor((1, 8, 8, 3), np.dtype(np.uint8)))
    memory = Buffer.from_handle(made.address, made.tensor.size, owner=made.owner)
    out = StridedMemoryView.from_buffer(memory, (1, 8, 8, 3), dtype=np.dtype(np.uint8), is_readonly=True)
    with pytest.raises(InputError, match="cannot be read through DLPack: it is read-only"):
        vae.decode(put(device, noise(1, 2, 2, 2)), out=out)


def test_an_array_of_another_gpu_is_refused(vae: VAE, device: cuda.CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Another:
        array: Any

        def __dlpack_device__(self) -> tuple[int, int]:
            return dlpack.CUDA, 1

    with pytest.raises(LatentError, match="it is on CUDA device 1, and this VAE on 0"):
        vae.decode(Another(put(device, noise(1, 2, 2, 2))))


def test_a_part_of_an_array_is_refused(vae: VAE, device: cuda.CudaDevice) -> None:
    made = device.array(Tensor((1, 2, 4, 4), np.dtype(np.float32)))
    with pytest.raises(LatentError) as refused:
        vae.decode(dlpack.to_caller(made, (2, 2), (2, 3)))
    assert str(refused.value) == (
        "latent of type StridedMemoryView cannot be read through DLPack: it is not contiguous. It must be contiguous, "
        "without a gradient, and on the VAE's own device"
    )


def test_there_is_no_room_for_a_call(vae: VAE, driver: ctypes.CDLL, expected: VAE) -> None:
    ctypes.c_uint64.in_dll(driver, "room").value = 100_000
    with pytest.raises(BackendError, match="bytes left on the GPU"):
        vae.decode(noise(1, 2, 4, 4))
    latent = noise(1, 2, 2, 2)
    np.testing.assert_array_equal(vae.decode(latent), expected.decode(latent))
