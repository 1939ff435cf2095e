"""Arrays in the device's memory, on a stand-in for the device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from arrays import noise
from host_gpu import Elsewhere, HostDevice
from tiny_inputs import photo_float

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, ImageError, InputError
from vaedeploy.runtime import VAE, on_device

# --------------------------------------------------------------------------------------- arrays in the device's memory


@pytest.fixture
def device(gpu: HostDevice, monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    """The stand-in, and arrays on it. What the VAE gives is told as (array, size, axes)."""
    monkeypatch.setattr(on_device, "as_device_array", lambda value, *_: value.array)
    monkeypatch.setattr(on_device, "to_caller", lambda array, size=None, axes=None: (array, size, axes))
    return gpu


def test_what_is_on_the_device_stays_there(device: HostDevice, engine_bundle: Bundle, expected: VAE) -> None:
    latent = noise(3, 2, 2, 2)
    with VAE(engine_bundle.path, "tensorrt-rtx") as vae:
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
        moments = vae.encode_moments(Elsewhere(device.put(photo)))
        for (found, _, _), wanted in zip(moments, expected.encode_moments(photo), strict=True):
            np.testing.assert_array_equal(found.on_host(), wanted)
        with pytest.raises(ImageError, match="is encoded without pad; copy it to the host"):
            vae.encode_moments(Elsewhere(device.put(photo)), pad=True)


def test_a_place_of_the_callers_is_filled(device: HostDevice, engine_bundle: Bundle, expected: VAE) -> None:
    latent = noise(1, 2, 2, 2)
    out = Elsewhere(device.put(np.zeros((1, 8, 8, 3), np.uint8), offset=64))
    with VAE(engine_bundle.path, "tensorrt-rtx") as vae:
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
        (
            lambda vae, put: vae.decode(put(noise(1, 2, 1, 2, 2))),
            "latent is float32 of shape (1, 2, 1, 2, 2); in the GPU's memory it must be (B, 2, h, w) float32 (torch: "
            ".float()). It has an axis for one frame, as those of Wan and Qwen-Image do: give latent[:, :, 0]",
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
    device: HostDevice,
    engine_bundle: Bundle,
    call: Callable[[VAE, Callable[[np.ndarray], Elsewhere]], object],
    reason: str,
) -> None:
    with VAE(engine_bundle.path, "tensorrt-rtx") as vae, pytest.raises(InputError) as refused:
        call(vae, lambda array: Elsewhere(device.put(array)))
    assert str(refused.value).startswith(reason)


def test_no_backend_here_takes_arrays_of_the_device(device: HostDevice, engine_bundle: Bundle) -> None:
    with VAE(engine_bundle.path, "onnxruntime-cpu") as vae, pytest.raises(BackendError) as refused:
        vae.decode(Elsewhere(device.put(noise(1, 2, 2, 2))))
    assert str(refused.value) == (
        "onnxruntime-cpu takes only arrays in host memory. Copy the array to the host (torch: .cpu()), "
        "or install a backend that runs "
        "on the GPU: vaedeploy doctor"
    )


def test_nan_on_the_device_is_noticed(device: HostDevice, engine_bundle: Bundle) -> None:
    latent = noise(2, 2, 2, 2)
    latent[1] = np.inf
    with VAE(engine_bundle.path, "tensorrt-rtx", on_nan="raise") as vae, pytest.raises(BackendError) as refused:
        vae.decode(Elsewhere(device.put(latent)))
    assert str(refused.value) == f"decode gave NaN or infinity in item 1 of a batch of 2 (bundle {engine_bundle.path})"
    image = photo_float(np.zeros((2, 8, 8, 3), np.uint8))
    image[0] = np.nan
    with (
        VAE(engine_bundle.path, "tensorrt-rtx", on_nan="raise") as vae,
        pytest.raises(BackendError, match="in item 0 of a"),
    ):
        vae.encode(Elsewhere(device.put(image)))
