"""The GPU runtime around its CUDA calls, on a stand-in for the device and engines that were built for real."""

from __future__ import annotations

import gc
import logging
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from arrays import noise
from command_line import Ended
from engine_files import DECODER, ENCODER, RTX4090, SIZES, write_profile
from host_gpu import HostDevice, HostPlan, HostStream
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.errors import BackendError, BundleError, EngineError, InputError, SizeError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.pipeline.verify import verify_bundle
from vaedeploy.runtime import VAE, dlpack, on_device
from vaedeploy.runtime.backends import Candidate
from vaedeploy.runtime.device import OnDevice
from vaedeploy.runtime.dispatch import Dispatch
from vaedeploy.runtime.engine import CONTEXTS, EngineSession
from vaedeploy.runtime.lane import Lane, Work
from vaedeploy.runtime.pool import Pool
from vaedeploy.runtime.routes import Half, Slot, cut, tightest
from vaedeploy.system.gpu import Gpu, cuda_devices
from vaedeploy.values.interface import Tensor
from vaedeploy.values.shapes import ShapeSet

# ------------------------------------------------------------------------------------------------- which range, how cut

SLOTS = [
    Slot("a", 0, ShapeSet(height=(64, 512, 1024), width=(64, 512, 1024), batch=(1, 1, 4))),
    Slot("a", 1, ShapeSet(height=512, width=512)),
    Slot("b", 0, ShapeSet(height=512, width=512, batch=2)),
]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 512, 512), SLOTS[1]),
        ((2, 512, 512), SLOTS[2]),
        ((3, 512, 512), SLOTS[0]),
        ((1, 512, 520), SLOTS[0]),
        ((1, 1024, 1024), SLOTS[0]),
        ((5, 512, 512), None),
        ((1, 56, 512), None),
        ((1, 512, 1032), None),
    ],
)
def test_the_tightest_range_answers(size: tuple[int, int, int], expected: Slot | None) -> None:
    assert tightest(SLOTS, *size) == expected


def test_of_equal_ranges_the_first_answers() -> None:
    twin = Slot("c", 0, ShapeSet(height=512, width=512))
    assert tightest([*SLOTS, twin], 1, 512, 512) == SLOTS[1]


@pytest.mark.parametrize(
    ("batch", "pieces"),
    [
        (4, [(0, 4, SLOTS[0])]),
        (5, [(0, 4, SLOTS[0]), (4, 5, SLOTS[1])]),
        (10, [(0, 4, SLOTS[0]), (4, 8, SLOTS[0]), (8, 10, SLOTS[2])]),
    ],
)
def test_a_batch_is_cut_at_the_largest(batch: int, pieces: list[tuple[int, int, Slot]]) -> None:
    assert [(piece.start, piece.stop, piece.slot) for piece in cut(SLOTS, batch, 512, 512)] == pieces


@given(st.integers(1, 40), st.sampled_from([512, 768]))
def test_pieces_are_the_batch(batch: int, side: int) -> None:
    pieces = cut(SLOTS, batch, side, side)
    assert [n for piece in pieces for n in range(piece.start, piece.stop)] == list(range(batch))
    assert all(piece.slot.shape.holds(piece.stop - piece.start, side, side) for piece in pieces)


def test_a_size_that_no_range_holds_is_told_with_those_that_there_are() -> None:
    with pytest.raises(SizeError) as refused:
        cut(SLOTS, 1, 2048, 512)
    assert str(refused.value) == (
        "no engine takes 1x2048x512 (batch x height x width, in pixels); there are: "
        "1-4x64-1024x64-1024, 1x512x512, 2x512x512"
    )
    with pytest.raises(SizeError, match=r"^no engine takes 3x512x512 .*; there are: 2x512x512$"):
        cut(SLOTS[2:], 3, 512, 512)


def test_a_batch_is_cut_so_that_nothing_is_left_over() -> None:
    """Five are three and two where an engine takes two to four: four and one would not do."""
    slot = Slot("a", 0, ShapeSet(height=8, width=8, batch=(2, 2, 4)))
    assert [(piece.start, piece.stop) for piece in cut([slot], 5, 8, 8)] in ([(0, 3), (3, 5)], [(0, 4), (4, 5)][:0])
    with pytest.raises(SizeError, match="no engine takes 1x8x8"):
        cut([slot], 1, 8, 8)
    with pytest.raises(SizeError, match=r"there are: none$"):
        cut([], 1, 512, 512)


# ---------------------------------------------------------------------------------------------------------------- pool


@dataclass(eq=False)
class Thing:
    key: object = None


def test_who_did_the_same_last_is_lent_again() -> None:
    made: list[Thing] = []

    def make() -> Thing:
        made.append(Thing())
        return made[-1]

    pool = Pool(make, 2)
    with pool.borrow("a") as first:
        first.key = "a"
        with pool.borrow("b") as second:
            second.key = "b"
            assert second is not first
    with pool.borrow("b") as again:
        assert again is second
    with pool.borrow("a") as again:
        assert again is first
    with pool.borrow("c") as again:
        assert again in made
    assert len(made) == 2


def test_the_pool_is_bounded_and_who_comes_later_waits() -> None:
    pool = Pool(Thing, 2)
    inside, most, lock = 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most
        with pool.borrow(None):
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.002)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(40)))
    assert most == 2


def test_what_failed_is_not_lent_again() -> None:
    pool = Pool(Thing, 1)
    with pytest.raises(RuntimeError), pool.borrow(None) as broken:
        raise RuntimeError
    with pool.borrow(None) as next_one:
        assert next_one is not broken
    assert pool.idle() == 1


# ------------------------------------------------------------------------------------------------------------- session


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with engines, built by TensorRT-RTX."""
    folder = tmp_path_factory.mktemp("gpu")
    write_profile(folder, precision='"fp32"', shapes=SIZES)
    return build_engines(tiny_bundle(folder / "tiny"), ["mine"], folder=folder)


@dataclass
class Opened:
    session: EngineSession
    device: HostDevice
    plans: dict[str, HostPlan]

    @property
    def events(self) -> list[str]:
        (plan,) = self.plans.values()
        return plan.events


@pytest.fixture
def opened(bundle: Bundle) -> Callable[..., Opened]:
    def open_half(part: str = "decoder", graphs: str = "recorded") -> Opened:
        device, plans = HostDevice(), {}
        name = DECODER if part == "decoder" else ENCODER

        def load(name: str) -> HostPlan:
            return plans.setdefault(name, HostPlan(bundle, name, graphs))

        half = Half(bundle, part, "tensorrt-rtx", (name,))  # type: ignore[arg-type]
        return Opened(EngineSession(half, device, load), device, plans)

    return open_half


@pytest.fixture
def expected(bundle: Bundle) -> VAE:
    return VAE(bundle.path, "onnxruntime-cpu")


def test_every_output_arrives(opened: Callable[..., Opened], expected: VAE) -> None:
    latent = noise(2, 2, 2, 3)
    image, levels, finite = opened().session.run(["image", "image_u8", "finite"], {"latent": latent})
    np.testing.assert_array_equal(image, expected.decode(latent, output="float"))
    np.testing.assert_array_equal(levels, expected.decode(latent))
    assert finite.tolist() == [True, True]
    photo = expected.decode(latent)
    (mean,) = opened("encoder").session.run(["latent_mean"], {"image": photo_float(photo)})
    np.testing.assert_array_equal(mean, expected.encode(photo))


def photo_float(photo: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((photo / np.float32(127.5) - 1).astype(np.float32).transpose(0, 3, 1, 2))


def test_only_what_was_asked_for_is_copied_back(opened: Callable[..., Opened]) -> None:
    """The bytes of an image are a quarter of its floats."""
    one, both = opened(), opened()
    latent = noise(1, 2, 2, 2)
    one.session.run(["image_u8", "finite"], {"latent": latent})
    both.session.run(["image_u8", "image", "finite"], {"latent": latent})
    pixels = 8 * 8 * 3
    assert both.device.host_bytes - one.device.host_bytes == 4 * pixels
    assert one.device.host_bytes == latent.nbytes + pixels + 1


def test_a_result_is_not_touched_by_the_next_call(opened: Callable[..., Opened]) -> None:
    session = opened().session
    (first,) = session.run(["image"], {"latent": noise(1, 2, 2, 2)})
    kept = first.copy()
    session.run(["image"], {"latent": noise(1, 2, 2, 2, seed=1)})
    np.testing.assert_array_equal(first, kept)


def test_a_large_batch_is_cut(opened: Callable[..., Opened], expected: VAE) -> None:
    made = opened()
    latent = noise(5, 2, 2, 2)
    (image,) = made.session.run(["image"], {"latent": latent})
    np.testing.assert_array_equal(image, expected.decode(latent, output="float"))
    assert [event for event in made.events if event.startswith("shape")] == ["shape 1 2x8x8", "shape 0 1x8x8"]


def test_a_graph_is_recorded_when_work_comes_again(opened: Callable[..., Opened], expected: VAE) -> None:
    made = opened()
    for seed in range(4):
        latent = noise(1, 2, 2, 2, seed=seed)
        (image,) = made.session.run(["image"], {"latent": latent})
        np.testing.assert_array_equal(image, expected.decode(latent, output="float"))
    assert made.events == ["shape 0 1x8x8", "enqueue", "capture"]  # and launched since
    (image,) = made.session.run(["image"], {"latent": noise(1, 2, 3, 2)})
    latent = noise(1, 2, 2, 2, seed=9)
    (image,) = made.session.run(["image"], {"latent": latent})
    np.testing.assert_array_equal(image, expected.decode(latent, output="float"))
    assert made.events[3:] == ["shape 1 1x12x8", "enqueue", "shape 0 1x8x8", "enqueue"]


def test_a_profile_may_want_no_graphs(opened: Callable[..., Opened]) -> None:
    made = opened(graphs="none")
    for _ in range(3):
        made.session.run(["image"], {"latent": noise(1, 2, 2, 2)})
    assert made.events == ["shape 0 1x8x8", "enqueue", "enqueue", "enqueue"]


def test_memory_is_kept_and_grows_only(opened: Callable[..., Opened]) -> None:
    made = opened()
    for _ in range(3):
        made.session.run(["image_u8"], {"latent": noise(2, 2, 4, 4)})
    before = made.device.device_bytes, made.device.host_bytes
    for height, width in ((1, 1), (4, 4), (2, 3)):
        made.session.run(["image_u8"], {"latent": noise(1, 2, height, width)})
    assert (made.device.device_bytes, made.device.host_bytes) == before


def test_many_threads(opened: Callable[..., Opened], expected: VAE) -> None:
    made = opened()
    latents = [noise(1 + n % 3, 2, 1 + n % 4, 2, seed=n) for n in range(24)]
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda z: made.session.run(["image"], {"latent": z})[0], latents))
    for latent, image in zip(latents, images, strict=True):
        np.testing.assert_array_equal(image, expected.decode(latent, output="float"))
    (plan,) = made.plans.values()
    assert 1 <= plan.contexts <= CONTEXTS


def test_arrays_on_the_device_are_not_copied(opened: Callable[..., Opened], expected: VAE) -> None:
    made = opened()
    latent = noise(1, 2, 2, 2)
    given, place = made.device.put(latent), made.device.put(np.zeros((1, 3, 8, 8), np.float32))
    image, finite = made.session.run(["image", "finite"], {"latent": given}, {"image": place})
    assert image is place
    np.testing.assert_array_equal(place.on_host(), expected.decode(latent, output="float"))
    assert finite.tolist() == [True]
    assert made.device.host_bytes == 1  # what tells of NaN


@pytest.mark.parametrize("offset", [4, 64, 256])
def test_addresses_that_tensorrt_does_not_take(opened: Callable[..., Opened], expected: VAE, offset: int) -> None:
    """Parts of larger arrays begin anywhere. Here a batch is cut too, and its pieces do."""
    made = opened()
    latent = noise(3, 2, 1, 1)
    given = made.device.put(latent, offset)
    place = made.device.put(np.zeros((3, 4, 4, 3), np.uint8), offset)
    made.session.run(["image_u8", "finite"], {"latent": given}, {"image_u8": place})
    np.testing.assert_array_equal(place.on_host(), expected.decode(latent))


def test_what_comes_again_goes_through_memory_of_the_lane(opened: Callable[..., Opened], expected: VAE) -> None:
    """A graph is of the addresses that it saw, and results have new ones each time."""
    made = opened()
    kept = []
    for seed in range(4):
        latent = noise(1, 2, 2, 2, seed=seed)
        place = made.device.put(np.zeros((1, 3, 8, 8), np.float32))
        made.session.run(["image", "finite"], {"latent": made.device.put(latent)}, {"image": place})
        kept.append((place, expected.decode(latent, output="float")))
    assert made.events == ["shape 0 1x8x8", "enqueue", "capture"]
    for place, image in kept:
        np.testing.assert_array_equal(place.on_host(), image)


def test_an_engine_that_cannot_be_captured(
    opened: Callable[..., Opened], expected: VAE, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = opened()

    def refuse(stream: HostStream, work: Callable[[], None]) -> None:
        raise BackendError("the stream is not to be captured")

    monkeypatch.setattr(HostStream, "capture", refuse)
    for seed in range(4):
        latent = noise(1, 2, 2, 2, seed=seed)
        (image,) = made.session.run(["image"], {"latent": latent})
        np.testing.assert_array_equal(image, expected.decode(latent, output="float"))
    assert made.events == ["shape 0 1x8x8", "enqueue", "enqueue", "enqueue", "enqueue"]
    told = [message for message in caplog.messages if "CUDA graphs" in message]
    assert told == ["CUDA graphs are not used, since one could not be recorded: the stream is not to be captured"]


def test_what_was_compiled_is_kept_once_a_shape(opened: Callable[..., Opened]) -> None:
    made = opened()
    for height in (2, 2, 3, 2):
        made.session.run(["image"], {"latent": noise(1, 2, height, 2)})
    (plan,) = made.plans.values()
    assert plan.settlements == 2


def test_a_call_that_fails_is_over_before_its_memory_is_free(
    opened: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = opened()
    waiting: list[int] = []
    synchronize = HostStream.synchronize
    monkeypatch.setattr(HostStream, "copy_out", lambda *_: (_ for _ in ()).throw(BackendError("no")))
    monkeypatch.setattr(
        HostStream, "synchronize", lambda stream: (waiting.append(len(stream.queue)), synchronize(stream))[1]
    )
    with pytest.raises(BackendError, match="no"):
        made.session.run(["image"], {"latent": noise(1, 2, 2, 2)})
    assert waiting == [2]  # the copy of the latent, and the engine's work


def test_a_session_goes_without_the_collector(opened: Callable[..., Opened]) -> None:
    """It holds gigabytes of a GPU."""
    made = opened()
    made.session.run(["image"], {"latent": noise(1, 2, 2, 2)})
    session = weakref.ref(made.session)
    gc.disable()
    try:
        del made
        assert session() is None
    finally:
        gc.enable()


def test_the_callers_stream_is_waited_for(opened: Callable[..., Opened], expected: VAE) -> None:
    made = opened()
    latent = noise(1, 2, 2, 2)
    given, stream = made.device.put(np.zeros_like(latent)), HostStream()
    source = made.device.put(latent)
    stream.copy_within(source.address, given.address, latent.nbytes)  # which has not happened yet
    (image, _) = made.session.run(["image", "finite"], {"latent": given}, after=[stream])
    np.testing.assert_array_equal(image, expected.decode(latent, output="float"))


def test_a_size_that_no_engine_takes(opened: Callable[..., Opened], bundle: Bundle) -> None:
    with pytest.raises(SizeError) as refused:
        opened().session.run(["image"], {"latent": noise(1, 2, 8, 2)})
    assert str(refused.value) == (
        "no engine takes 1x32x8 (batch x height x width, in pixels); there are: 1x8x8, 1-2x4-16x4-16. To add a size, "
        "put it under shapes in a profile of your own (vaedeploy profiles --init my-mine --profiles DIR), and run: "
        f"vaedeploy build {bundle.path} --profile my-mine --profiles DIR --backend tensorrt-rtx"
    )


def test_a_context_that_failed_is_not_used_again(
    opened: Callable[..., Opened], expected: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = opened()
    (plan,) = made.plans.values()
    with monkeypatch.context() as broken:
        broken.setattr(plan.session, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("illegal memory access")))
        with pytest.raises(RuntimeError):
            made.session.run(["image"], {"latent": noise(1, 2, 2, 2)})
    latent = noise(1, 2, 2, 2)
    (image,) = made.session.run(["image"], {"latent": latent})
    np.testing.assert_array_equal(image, expected.decode(latent, output="float"))
    assert plan.contexts == 2


def test_a_lane_that_could_not_be_set_up_starts_anew(bundle: Bundle) -> None:
    plan = HostPlan(bundle, DECODER)
    lane = Lane(HostDevice(), plan)
    half = plan.half
    image = np.empty((1, 3, 8, 8), np.float32)

    def work(index: int) -> Work:
        return Work(index, "latent", noise(1, 2, 2, 2), half.interface.gives(1, 8, 8), {"image": image})

    lane.run(work(0))
    bad = Work(0, "latent", noise(1, 2, 3, 2), half.interface.gives(1, 12, 8), {})
    with pytest.raises(AssertionError, match="not within"):
        lane.run(bad)
    lane.run(work(0))
    assert plan.events == ["shape 0 1x8x8", "enqueue", "shape 0 1x8x8", "enqueue"]


def test_part_of_an_array_on_the_device() -> None:
    array = HostDevice().put(np.arange(24, dtype=np.float32).reshape(4, 2, 3))
    np.testing.assert_array_equal(array[1:3].on_host(), np.arange(6, 18, dtype=np.float32).reshape(2, 2, 3))
    assert array[1:3].owner is array.owner


# ------------------------------------------------------------------------------------------------------- behind the VAE


@pytest.fixture
def gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    """This machine, as if it had the GPU that the engines are for."""
    device = HostDevice()
    version = bundle.manifest.engines[DECODER].identity.backend_version
    backends = "vaedeploy.runtime.backends"
    monkeypatch.setattr(f"{backends}.find_gpu", lambda number: RTX4090)
    monkeypatch.setattr(f"{backends}.tensorrt.problem", lambda backend, number: None)
    monkeypatch.setattr(f"{backends}.tensorrt.load_library", lambda backend: SimpleNamespace(__version__=version))
    monkeypatch.setattr(f"{backends}.CudaDevice", lambda number: device)
    monkeypatch.setattr("vaedeploy.runtime.vae.CudaDevice", lambda number: device)
    monkeypatch.setattr(
        f"{backends}.tensorrt.load_plan", lambda path, *_: HostPlan(bundle, path.relative_to(bundle.path).as_posix())
    )
    return device


def test_engines_answer_first(gpu: HostDevice, bundle: Bundle, expected: VAE, caplog: pytest.LogCaptureFixture) -> None:
    latent = noise(3, 2, 2, 2)
    with VAE(bundle.path) as vae:
        assert vae.backend == "tensorrt-rtx"
        image = vae.decode(latent)
        np.testing.assert_array_equal(image, expected.decode(latent))
        np.testing.assert_array_equal(vae.encode(image), expected.encode(image))
    assert gpu.device_bytes > 0
    assert [record.getMessage() for record in caplog.records] == [
        f"{bundle.path / name} was never compared with PyTorch on its GPU; its pictures may be wrong. Run: vaedeploy "
        f"verify {bundle.path} --backend tensorrt-rtx --profile mine"
        for name in (DECODER, ENCODER)
    ]


def test_an_engine_that_several_profiles_have_is_loaded_once(
    gpu: HostDevice, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profile(tmp_path, "twin", precision='"fp32"', shapes=SIZES)
    copied = Bundle.open(shutil.copytree(bundle.path, tmp_path / "tiny"))
    made = build_engines(copied, ["twin"], folder=tmp_path)
    loaded: list[str] = []

    def load(path: Path, *_: object) -> HostPlan:
        loaded.append(path.parent.name)
        return HostPlan(made, path.relative_to(made.path).as_posix())

    monkeypatch.setattr("vaedeploy.runtime.backends.tensorrt.load_plan", load)
    with VAE(made.path, "tensorrt-rtx") as vae:
        vae.decode(noise(1, 2, 2, 2))
    assert len(loaded) == 1


def test_the_gate_says_nothing_of_what_it_is_about_to_prove(own: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    verify_bundle(own, backend="tensorrt-rtx")
    assert caplog.messages == []


def test_a_size_that_no_engine_takes_falls_to_the_next_backend(
    gpu: HostDevice, bundle: Bundle, expected: VAE, caplog: pytest.LogCaptureFixture
) -> None:
    large = noise(1, 2, 8, 8)
    with VAE(bundle.path) as vae:
        for _ in range(2):
            np.testing.assert_array_equal(vae.decode(large), expected.decode(large))
        assert vae.backend == "tensorrt-rtx"  # for what it does take
    told = [record.getMessage() for record in caplog.records if "in place of" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("onnxruntime-cpu answers in place of tensorrt-rtx: no engine takes 1x32x32 ")
    with VAE(bundle.path, "tensorrt-rtx") as vae, pytest.raises(SizeError, match="no engine takes 1x32x32"):
        vae.decode(large)


def test_a_profile_that_the_bundle_does_not_have(gpu: HostDevice, bundle: Bundle) -> None:
    with VAE(bundle.path, "tensorrt-rtx", profile="mine") as vae:
        assert vae.backend == "tensorrt-rtx"
    with pytest.raises(InputError) as refused:
        VAE(bundle.path, profile="t4")
    assert str(refused.value) == (
        f"bundle {bundle.path} has no engines of profile 't4'; it has those of: mine. Build them: vaedeploy build "
        f"{bundle.path} --profile t4"
    )


def test_without_a_gpu_engines_are_not_missed(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """A machine that builds for others has bundles with engines, and runs them on its CPU."""
    if cuda_devices() > 0:
        pytest.skip("there is a GPU here")
    with VAE(bundle.path) as vae:
        assert vae.backend == "onnxruntime-cpu"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_another_gpu(
    gpu: HostDevice, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vaedeploy.runtime.backends.find_gpu", lambda number: Gpu("NVIDIA T4", "7.5", 15.0))
    with VAE(bundle.path) as vae:
        assert vae.backend == "onnxruntime-cpu"
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told.startswith("tensorrt-rtx does not answer here: ")
    assert "it was built for compute capability 8.9, and NVIDIA T4 has 7.5" in told
    with pytest.raises(BackendError, match=r"compute capability 8.9, and NVIDIA T4 has 7.5"):
        VAE(bundle.path, "tensorrt-rtx")


def test_a_bundle_without_engines(gpu: HostDevice, tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "tiny")
    with VAE(made.path) as vae:
        assert vae.backend == "onnxruntime-cpu"
    with pytest.raises(BackendError) as refused:
        VAE(made.path, "tensorrt")
    assert str(refused.value) == (
        f"bundle {made.path} has no engines of tensorrt. Build them: vaedeploy build {made.path} --profile NAME "
        "--backend tensorrt"
    )


def test_an_altered_engine_is_not_loaded(gpu: HostDevice, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_profile(tmp_path, precision='"fp32"', shapes=SIZES)
    made = build_engines(tiny_bundle(tmp_path / "tiny"), ["mine"], folder=tmp_path)
    data = bytearray((made.path / DECODER).read_bytes())
    data[-1] ^= 1
    (made.path / DECODER).write_bytes(data)
    latent = noise(1, 2, 2, 2)
    with VAE(made.path, "tensorrt-rtx") as vae, pytest.raises(EngineError, match="is altered: its sha256 is"):
        vae.decode(latent)
    with VAE(made.path) as vae, VAE(made.path, "onnxruntime-cpu") as cpu:
        np.testing.assert_array_equal(vae.decode(latent), cpu.decode(latent))
        assert vae.backend == "onnxruntime-cpu"
    assert any(
        record.getMessage().startswith("tensorrt-rtx cannot be used, so onnxruntime-cpu answers: ")
        for record in caplog.records
    )


# ------------------------------------------------------------------------------------------------------------- the gate


@pytest.fixture
def own(gpu: HostDevice, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A copy of the bundle that may be written to, on a machine as if with its GPU."""
    copied = Bundle.open(shutil.copytree(bundle.path, tmp_path / "tiny"))
    monkeypatch.setattr(
        "vaedeploy.runtime.backends.tensorrt.load_plan",
        lambda path, *_: HostPlan(copied, path.relative_to(copied.path).as_posix()),
    )
    return copied


def test_engines_that_are_right_pass_the_gate(own: Bundle) -> None:
    report = verify_bundle(own, backend="tensorrt-rtx", profile="mine")
    assert report.passed
    found = [(case.part, case.name, case.batch, case.height) for case in report.cases if case.output != "latent_std"]
    assert found == [
        (part, name, *size)
        for part in ("encoder", "decoder")
        for name, *size in [
            ("small of mine", 1, 8),
            ("any of mine", 1, 4),
            ("any of mine", 1, 8),
            ("any of mine", 2, 16),
        ]
    ]
    made = check_bundle(own.path)
    for name in (ENCODER, DECODER):
        verification = made.manifest.engines[name].verification
        assert verification is not None
        assert (verification.passed, verification.backend) == (True, "tensorrt-rtx")
        assert verification.cases == (8 if name == ENCODER else 4)  # the encoder has two outputs
    assert made.manifest.verification == own.manifest.verification
    assert (made.path / "report" / "tensorrt-rtx.json").exists()


def test_every_optimisation_profile_runs_at_its_own_corners(own: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimum of the wide one is a size that the tight one takes as well."""
    plans: list[HostPlan] = []

    def load(path: Path, *_: object) -> HostPlan:
        plans.append(HostPlan(own, path.relative_to(own.path).as_posix()))
        return plans[-1]

    monkeypatch.setattr("vaedeploy.runtime.backends.tensorrt.load_plan", load)
    verify_bundle(own, backend="tensorrt-rtx")
    for name in (ENCODER, DECODER):
        events = [event for plan in plans if plan.name == name for event in plan.events if event.startswith("shape")]
        assert events == ["shape 0 1x8x8", "shape 1 1x4x4", "shape 1 1x8x8", "shape 1 2x16x16"]


def test_every_engine_runs_before_it_is_verified(own: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two profiles with equal sizes, one would answer for both."""
    write_profile(tmp_path, "twin", precision='"fp32"', shapes=SIZES)
    made = build_engines(own, ["twin"], folder=tmp_path)
    monkeypatch.setattr(
        "vaedeploy.runtime.backends.tensorrt.load_plan",
        lambda path, *_: HostPlan(made, path.relative_to(made.path).as_posix()),
    )
    report = verify_bundle(made, backend="tensorrt-rtx")
    forms = {case.form for case in report.cases}
    assert forms == {"mine tensorrt-rtx fp32", "twin tensorrt-rtx fp32"}


def test_a_verified_engine_is_used_without_a_warning(own: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    verify_bundle(own, backend="tensorrt-rtx")
    caplog.clear()
    with VAE(own.path) as vae:
        vae.decode(noise(1, 2, 2, 2))
    assert caplog.messages == []


def test_engines_that_are_wrong_do_not_pass(
    own: Bundle, monkeypatch: pytest.MonkeyPatch, vaedeploy: Callable[..., Ended]
) -> None:
    """The decoder's engine computes something else: a thousandth too bright."""
    model = onnx.load(own.graph("decoder"))
    (add,) = (node for node in model.graph.node if node.output[0] == "image")
    add.output[0] = "dark"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.001), "gain"))
    model.graph.node.insert(1, onnx.helper.make_node("Mul", ["dark", "gain"], ["image"]))
    wrong = onnxruntime.InferenceSession(model.SerializeToString())

    def load(path: Path, *_: object) -> HostPlan:
        plan = HostPlan(own, path.relative_to(own.path).as_posix())
        if plan.half.part == "decoder":
            plan.session = wrong
        return plan

    monkeypatch.setattr("vaedeploy.runtime.backends.tensorrt.load_plan", load)
    ended = vaedeploy("verify", own.path, "--backend", "tensorrt-rtx", "--profile", "mine")
    assert ended.code == 3
    assert "relative error is 0.001; it must be at most 2e-05" in ended.out
    engines = check_bundle(own.path).manifest.engines
    assert not engines[DECODER].verification.passed  # type: ignore[union-attr]


def test_the_gate_of_graphs(own: Bundle) -> None:
    """On the backend that the reference itself runs on: not one value differs."""
    report = verify_bundle(own, backend="onnxruntime-cpu")
    assert report.passed
    assert report.worst["max_abs"] == 0


def test_the_gate_needs_something_to_compare_with(own: Bundle) -> None:
    manifest = msgspec.structs.replace(own.manifest, verification=None)
    with pytest.raises(BundleError, match=r"is not verified, so nothing can be compared with it. Run: vaedeploy "):
        verify_bundle(Bundle(own.path, manifest), backend="tensorrt-rtx")
    with pytest.raises(InputError, match="profiles are for engines; onnxruntime-cpu runs graphs"):
        verify_bundle(own, backend="onnxruntime-cpu", profile="mine")


def test_a_profile_without_a_backend_is_a_mistake(vaedeploy: Callable[..., Ended], bundle: Bundle) -> None:
    ended = vaedeploy("verify", bundle.path, "--profile", "mine")
    assert (ended.code, ended.out) == (2, "")
    assert "--profile needs --backend: only engines are built for a profile." in ended.err


# --------------------------------------------------------------------------------------- arrays in the device's memory


@dataclass
class Elsewhere:
    """An array in the device's memory, as another library has it."""

    array: OnDevice

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 0


@pytest.fixture
def device(gpu: HostDevice, monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    """The stand-in, and arrays on it. What the VAE gives is told as (array, size, axes)."""
    monkeypatch.setattr(on_device, "as_device_array", lambda value, *_: value.array)
    monkeypatch.setattr(on_device, "to_caller", lambda array, size=None, axes=None: (array, size, axes))
    return gpu


def test_what_is_on_the_device_stays_there(device: HostDevice, bundle: Bundle, expected: VAE) -> None:
    latent = noise(3, 2, 2, 2)
    with VAE(bundle.path, "tensorrt-rtx") as vae:
        before = device.host_bytes
        image, size, _ = vae.decode(Elsewhere(device.put(latent)))
        np.testing.assert_array_equal(image.on_host(), expected.decode(latent))
        assert size is None
        assert device.host_bytes - before <= 3 + image.tensor.size  # no more than what tells of NaN, and this look
        raw, size, axes = vae.decode(Elsewhere(device.put(latent)), output="float", size=(7, 5))
        np.testing.assert_array_equal(raw.on_host(), expected.decode(latent, output="float"))
        assert (size, axes) == ((7, 5), (2, 3))
        photo = photo_float(expected.decode(latent))
        found, _, _ = vae.encode(Elsewhere(device.put(photo)))
        np.testing.assert_array_equal(found.on_host(), expected.encode(photo))


def test_a_place_of_the_callers_is_filled(device: HostDevice, bundle: Bundle, expected: VAE) -> None:
    latent = noise(1, 2, 2, 2)
    out = Elsewhere(device.put(np.zeros((1, 8, 8, 3), np.uint8), offset=64))
    with VAE(bundle.path, "tensorrt-rtx") as vae:
        assert vae.decode(Elsewhere(device.put(latent)), out=out) is out
    np.testing.assert_array_equal(out.array.on_host(), expected.decode(latent))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (
            lambda vae, put: vae.decode(put(noise(1, 2, 2, 2).astype(np.float16))),
            "latent is float16 of shape (1, 2, 2, 2); in the GPU's memory it must be (B, 2, h, w) float32 (torch: "
            ".float())",
        ),
        (lambda vae, put: vae.decode(put(noise(1, 3, 2, 2))), "latent is float32 of shape (1, 3, 2, 2); in the GPU's"),
        (
            lambda vae, put: vae.encode(put(np.zeros((1, 8, 8, 3), np.uint8))),
            "image is uint8 of shape (1, 8, 8, 3); in the GPU's memory it must be (B, 3, H, W) float32 in [-1, 1], as "
            "the encoder of this bundle takes it. For the other kind export with --image-input, or copy the image to "
            "the host",
        ),
        (lambda vae, put: vae.encode(put(noise(1, 3, 9, 8))), "image is 9x8 (height x width), but both must be mult"),
        (lambda vae, put: vae.encode(put(noise(1, 3, 8, 8)), pad=True), "an image in the GPU's memory is encoded with"),
        (
            lambda vae, put: vae.decode(put(noise(1, 2, 2, 2)), out=np.empty((1, 8, 8, 3), np.uint8)),
            "out is not in the GPU's memory, where the latent is; it must be on the same device",
        ),
        (
            lambda vae, put: vae.decode(put(noise(1, 2, 2, 2)), out=put(np.empty((1, 8, 8), np.uint8))),
            "out is uint8 of shape (1, 8, 8); it must be uint8 of shape (1, 8, 8, 3)",
        ),
        (
            lambda vae, put: vae.decode(put(noise(1, 2, 2, 2)), size=(7, 7), out=put(np.empty((1, 8, 8, 3), np.uint8))),
            "out and size cannot both be given for an array in the GPU's memory; cut it afterwards",
        ),
        (
            lambda vae, put: vae.decode(put(noise(1, 2, 2, 2)), size=(20, 7)),
            "size is 20x7 (height x width), but this latent decodes to 8x8",
        ),
    ],
)
def test_what_cannot_be_taken_from_the_device(
    device: HostDevice, bundle: Bundle, call: Callable[[VAE, Callable[[np.ndarray], Elsewhere]], object], reason: str
) -> None:
    with VAE(bundle.path, "tensorrt-rtx") as vae, pytest.raises(InputError) as refused:
        call(vae, lambda array: Elsewhere(device.put(array)))
    assert str(refused.value).startswith(reason)


def test_no_backend_here_takes_arrays_of_the_device(device: HostDevice, bundle: Bundle) -> None:
    with VAE(bundle.path, "onnxruntime-cpu") as vae, pytest.raises(BackendError) as refused:
        vae.decode(Elsewhere(device.put(noise(1, 2, 2, 2))))
    assert str(refused.value) == (
        "onnxruntime-cpu takes arrays of the host alone. Copy it there (torch: .cpu()), or install a backend that runs "
        "on the GPU: vaedeploy doctor"
    )


def test_nan_on_the_device_is_noticed(device: HostDevice, bundle: Bundle) -> None:
    latent = noise(2, 2, 2, 2)
    latent[1] = np.inf
    with VAE(bundle.path, "tensorrt-rtx", on_nan="raise") as vae, pytest.raises(BackendError) as refused:
        vae.decode(Elsewhere(device.put(latent)))
    assert str(refused.value) == f"decode gave NaN or infinity in item 1 of a batch of 2 (bundle {bundle.path})"
    image = photo_float(np.zeros((2, 8, 8, 3), np.uint8))
    image[0] = np.nan
    with VAE(bundle.path, "tensorrt-rtx", on_nan="raise") as vae, pytest.raises(BackendError, match="in item 0 of a"):
        vae.encode(Elsewhere(device.put(image)))


def test_items_on_the_device_are_run_again_in_place(device: HostDevice, bundle: Bundle) -> None:
    """By a candidate that takes such arrays too; the other items stay as they are."""
    engines = {precision: HostPlan(bundle, DECODER) for precision in ("fp16", "fp32")}
    half = Half(bundle, "decoder", "tensorrt-rtx", (DECODER,))
    broken = engines["fp16"].session.run

    def overflow(names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        results = broken(names, feeds)
        for name, result in zip(names, results, strict=True):
            if name == "image":
                result[1] = np.nan
            if name == "finite":
                result[1] = False
        return results

    engines["fp16"].session = SimpleNamespace(run=overflow)  # type: ignore[assignment]
    candidates = [
        Candidate("tensorrt-rtx", precision, lambda part, plan=plan: EngineSession(half, device, lambda name: plan))  # type: ignore[arg-type,misc]
        for precision, plan in engines.items()
    ]
    halves = Dispatch(bundle, candidates, may_fall_back=False, on_nan="rerun")
    latent = noise(2, 2, 2, 2)
    place = device.put(np.zeros((2, 3, 8, 8), np.float32))
    halves.run("decoder", ["image", "finite"], {"latent": device.put(latent)}, {"image": place})
    with VAE(bundle.path, "onnxruntime-cpu") as cpu:
        np.testing.assert_array_equal(place.on_host(), cpu.decode(latent, output="float"))
    assert [event for event in engines["fp32"].events if event.startswith("shape")] == ["shape 0 1x8x8"]


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
