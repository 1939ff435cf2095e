"""A lane's memory, copies and recorded graphs, on a stand-in for the device and engines that were built for real."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from arrays import noise
from host_gpu import HostStream, Opened

from vaedeploy.errors import BackendError
from vaedeploy.runtime import VAE


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
