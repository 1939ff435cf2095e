"""Sessions of engines around the CUDA calls, on a stand-in for the device and engines that were built for real."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from arrays import noise
from engine_files import DECODER
from host_gpu import HostDevice, HostPlan, HostStream, Opened
from tiny_inputs import photo_float

from vaedeploy.bundle import Bundle
from vaedeploy.errors import SizeError
from vaedeploy.runtime import VAE
from vaedeploy.runtime.engine import CONTEXTS, EngineSession
from vaedeploy.runtime.lane import Lane, Work
from vaedeploy.runtime.routes import Half
from vaedeploy.system import processes

# ------------------------------------------------------------------------------------------------------------- session


def test_every_output_arrives(opened: Callable[..., Opened], expected: VAE) -> None:
    latent = noise(2, 2, 2, 3)
    image, levels, finite = opened().session.run(["image", "image_u8", "finite"], {"latent": latent})
    np.testing.assert_array_equal(image, expected.decode(latent, output="float"))
    np.testing.assert_array_equal(levels, expected.decode(latent))
    assert finite.tolist() == [True, True]
    photo = expected.decode(latent)
    (mean,) = opened("encoder").session.run(["latent_mean"], {"image": photo_float(photo)})
    np.testing.assert_array_equal(mean, expected.encode(photo))


def test_the_end_of_the_process_waits_for_engines_that_load(engine_bundle: Bundle) -> None:
    """A daemon thread that is ended within TensorRT aborts the process."""
    calls = []

    def load(name: str) -> HostPlan:
        calls.append(len(processes._calling))
        return HostPlan(engine_bundle, name)

    EngineSession(Half(engine_bundle, "decoder", "tensorrt-rtx", (DECODER,)), HostDevice(), load)
    assert calls == [1]


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


def test_many_threads(opened: Callable[..., Opened], expected: VAE) -> None:
    made = opened()
    latents = [noise(1 + n % 3, 2, 1 + n % 4, 2, seed=n) for n in range(24)]
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda z: made.session.run(["image"], {"latent": z})[0], latents))
    for latent, image in zip(latents, images, strict=True):
        np.testing.assert_array_equal(image, expected.decode(latent, output="float"))
    (plan,) = made.plans.values()
    assert 1 <= plan.contexts <= CONTEXTS


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


def test_a_size_that_no_engine_takes(opened: Callable[..., Opened], engine_bundle: Bundle) -> None:
    with pytest.raises(SizeError) as refused:
        opened().session.run(["image"], {"latent": noise(1, 2, 8, 2)})
    assert str(refused.value) == (
        "no engine takes 1x32x8 (batch x height x width, in pixels); there are: 1x8x8, 1-2x4-16x4-16. To add it, make "
        "a profile of your own (vaedeploy profiles --init my-mine --profiles DIR), write "
        "32x8 = { height = 32, width = 8 } under [shapes] there, and run: "
        f"vaedeploy build {engine_bundle.path} --profile my-mine --profiles DIR --backend tensorrt-rtx"
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


def test_a_lane_that_could_not_be_set_up_starts_anew(engine_bundle: Bundle) -> None:
    plan = HostPlan(engine_bundle, DECODER)
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
