"""The runtime on tiny bundles, with the real ONNX Runtime."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tiny_bundle import FAILED, tiny_bundle

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.manifest import FileInfo, encode_manifest
from vaedeploy.errors import BackendError, BundleError, ImageError, InputError, LatentError, SizeError
from vaedeploy.images.pixels import to_float
from vaedeploy.runtime import BACKENDS, VAE, Limits, UnverifiedBundleWarning, onnxruntime_cuda
from vaedeploy.runtime.arrays import pad_image
from vaedeploy.runtime.backends import Candidate, find_candidates
from vaedeploy.runtime.dispatch import Dispatch
from vaedeploy.runtime.onnxruntime_cpu import Session, usable_cores
from vaedeploy.values.latent import SizeRule

FACTOR, CHANNELS = 4, 2
FORMS = "(H, W, 3) or (B, H, W, 3) uint8, or (B, 3, H, W) float in [-1, 1]"
LATENTS = "it must be (B, 2, h, w) float"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("float") / "tiny")


@pytest.fixture(scope="module")
def bytes_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same weights, with an encoder that takes uint8."""
    return tiny_bundle(tmp_path_factory.mktemp("uint8") / "tiny", image_input="uint8")


@pytest.fixture(scope="module")
def vae(bundle: Bundle) -> Iterator[VAE]:
    with VAE(bundle.path) as opened:
        yield opened


@pytest.fixture(scope="module")
def bytes_vae(bytes_bundle: Bundle) -> Iterator[VAE]:
    with VAE(bytes_bundle.path) as opened:
        yield opened


def photo(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


def weights(bundle: Bundle, part: str) -> np.ndarray:
    model = onnx.load(bundle.path / f"{part}.onnx")
    (tensor,) = (t for t in model.graph.initializer if t.name == "weights")
    return numpy_helper.to_array(tensor).astype(np.float64)


# What is computed


def test_encode_gives_the_mean(vae: VAE, bundle: Bundle) -> None:
    image = photo(2, 8, 12)
    latent = vae.encode(image)
    blocks = (image / 127.5 - 1).reshape(2, 2, FACTOR, 3, FACTOR, 3)
    moments = np.einsum("bhiwjc,kcij->bkhw", blocks, weights(bundle, "encoder"))
    assert latent.shape == (2, CHANNELS, 2, 3)
    assert latent.dtype == np.float32
    np.testing.assert_allclose(latent, moments[:, :CHANNELS], atol=1e-5)


def test_decode_gives_bytes_or_floats(vae: VAE, bundle: Bundle) -> None:
    latent = noise(2, CHANNELS, 2, 3)
    floats = vae.decode(latent, output="float")
    wanted = np.einsum("bkhw,kcij->bchiwj", latent, weights(bundle, "decoder")).reshape(2, 3, 8, 12)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, wanted, atol=1e-5)
    assert np.abs(floats).max() > 1  # not clamped
    image = vae.decode(latent)
    assert image.dtype == np.uint8
    levels = np.clip(np.round((floats + np.float32(1)) * np.float32(127.5)), 0, 255)
    np.testing.assert_array_equal(image, levels.transpose(0, 2, 3, 1))


def test_bytes_become_floats_as_specified() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1).repeat(3, axis=3)
    wanted = np.array([np.float32(n) / np.float32(127.5) - np.float32(1) for n in range(256)])
    floats = to_float(levels)
    assert floats.flags.c_contiguous
    np.testing.assert_array_equal(floats[0, :, 0], [wanted] * 3)


def test_bytes_and_floats_encode_alike_in_both_forms(vae: VAE, bytes_vae: VAE) -> None:
    image = photo(2, 8, 8)
    latent = vae.encode(image)
    np.testing.assert_array_equal(vae.encode(to_float(image)), latent)
    np.testing.assert_array_equal(bytes_vae.encode(image), latent)


def test_one_image_needs_no_batch(vae: VAE) -> None:
    image = photo(8, 8)
    np.testing.assert_array_equal(vae.encode(image), vae.encode(image[None]))


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_floats_are_taken(vae: VAE, kind: type) -> None:
    image, latent = to_float(photo(1, 8, 8)).astype(kind), noise(1, CHANNELS, 2, 2).astype(kind)
    np.testing.assert_array_equal(vae.encode(image), vae.encode(image.astype(np.float32)))
    np.testing.assert_array_equal(vae.decode(latent), vae.decode(latent.astype(np.float32)))


def test_memory_order_does_not_matter(vae: VAE, bytes_vae: VAE) -> None:
    image, latent = photo(1, 8, 16), noise(1, CHANNELS, 2, 4)
    turned = np.asfortranarray(image)[:, ::-1][:, ::-1]
    strided = np.repeat(latent, 2, axis=3)[..., ::2]
    assert not turned.flags.c_contiguous
    assert not strided.flags.c_contiguous
    for opened in (vae, bytes_vae):
        np.testing.assert_array_equal(opened.encode(turned), opened.encode(image))
    np.testing.assert_array_equal(vae.encode(np.asfortranarray(to_float(image))), vae.encode(image))
    np.testing.assert_array_equal(vae.decode(strided), vae.decode(latent))


def test_arguments_are_left_as_they_are(vae: VAE) -> None:
    image, floats, latent = photo(1, 8, 8), to_float(photo(1, 8, 8)), noise(1, CHANNELS, 2, 2)
    for array in (image, floats, latent):
        array.flags.writeable = False
    vae.encode(image)
    vae.encode(floats, sample=True, seed=1)
    vae.decode(latent)


def test_results_are_the_caller_s_own(vae: VAE) -> None:
    calls: list[Callable[[int], np.ndarray]] = [
        lambda n: vae.encode(photo(1, 8, 8, seed=n)),
        lambda n: vae.encode(photo(1, 8, 8, seed=n), sample=True, seed=n),
        lambda n: vae.decode(noise(1, CHANNELS, 2, 2, seed=n)),
        lambda n: vae.decode(noise(1, CHANNELS, 2, 2, seed=n), output="float"),
        lambda n: vae.decode(noise(2, CHANNELS, 2, 2, seed=n), size=(7, 6)),
        lambda n: vae.decode(noise(2, CHANNELS, 2, 2, seed=n), size=(7, 6), output="float"),
    ]
    for call in calls:
        first = call(1)
        kept = first.copy()
        second = call(2)
        assert first.flags.c_contiguous
        assert first.flags.writeable
        assert not np.shares_memory(first, second)
        np.testing.assert_array_equal(first, kept)
        first[...] = 0
        np.testing.assert_array_equal(call(1), kept)


def test_out_is_filled_and_returned(vae: VAE) -> None:
    latent = noise(2, CHANNELS, 2, 2)
    pixels = np.empty((2, 8, 8, 3), np.uint8)
    assert vae.decode(latent, out=pixels) is pixels
    np.testing.assert_array_equal(pixels, vae.decode(latent))
    floats = np.empty((2, 3, 7, 5, 2), np.float32)[..., 0]
    assert vae.decode(latent, output="float", size=(7, 5), out=floats) is floats
    np.testing.assert_array_equal(floats, vae.decode(latent, output="float")[:, :, :7, :5])


@pytest.mark.parametrize(
    ("out", "told"),
    [
        (np.empty((1, 8, 8, 3), np.float32), "out is float32 of shape (1, 8, 8, 3); "),
        (np.empty((8, 8, 3), np.uint8), "out is uint8 of shape (8, 8, 3); "),
        (np.broadcast_to(np.uint8(0), (1, 8, 8, 3)), "out is read-only uint8 of shape (1, 8, 8, 3); "),
    ],
)
def test_out_that_does_not_fit_is_refused(vae: VAE, out: np.ndarray, told: str) -> None:
    with pytest.raises(InputError) as caught:
        vae.decode(noise(1, CHANNELS, 2, 2), out=out)
    assert str(caught.value) == f"{told}it must be writeable uint8 of shape (1, 8, 8, 3)"


def test_out_must_be_numpy(vae: VAE) -> None:
    with pytest.raises(InputError) as caught:
        vae.decode(noise(1, CHANNELS, 2, 2), out=[0])  # type: ignore[arg-type]
    assert str(caught.value) == "out is of type list; it must be a numpy array"


# DLPack


def test_tensors_of_torch_are_taken(vae: VAE) -> None:
    torch = pytest.importorskip("torch")
    image, latent = photo(1, 8, 12), noise(1, CHANNELS, 2, 3)
    wanted = vae.encode(image)
    tensor = torch.from_numpy(image)
    np.testing.assert_array_equal(vae.encode(tensor), wanted)
    chw = tensor.permute(0, 3, 1, 2).contiguous()
    np.testing.assert_array_equal(vae.encode(chw.permute(0, 2, 3, 1)), wanted)
    np.testing.assert_array_equal(vae.encode(chw / 127.5 - 1), wanted)
    np.testing.assert_array_equal(vae.decode(torch.from_numpy(latent)), vae.decode(latent))
    half = torch.from_numpy(latent).half()
    np.testing.assert_array_equal(vae.decode(half), vae.decode(half.numpy()))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"requires_grad": True}, "Can't export tensors that require gradient, use tensor.detach()"),
        ({"dtype": "bfloat16"}, "Unsupported dtype in DLTensor"),
        ({"device": "meta"}, "Cannot pack tensors on meta"),
    ],
)
def test_tensors_that_numpy_cannot_read_are_refused(vae: VAE, options: dict[str, Any], why: str) -> None:
    torch = pytest.importorskip("torch")
    if "dtype" in options:
        options = {"dtype": torch.bfloat16}
    for call, what, error in ((vae.encode, "image", ImageError), (vae.decode, "latent", LatentError)):
        with pytest.raises(error) as caught:
            call(torch.zeros(1, CHANNELS, 4, 4, **options))  # type: ignore[operator]
        assert str(caught.value) == (
            f"{what} of type Tensor cannot be read through DLPack: {why}. It must be on the CPU, without a gradient, "
            "and of a type that numpy has (torch: .detach().cpu().float())"
        )


# Bad input


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([[0, 1], [2, 3]], "image is of type list; it must be a numpy array or something that speaks DLPack. "
         "numpy.asarray() may turn it into one"),
        (photo(8, 8)[..., 0], f"image is uint8 of shape (8, 8); it must be {FORMS}"),
        (np.zeros((8, 8, 4), np.uint8), f"image is uint8 of shape (8, 8, 4); it must be {FORMS}"),
        (np.zeros((1, 3, 8, 8), np.uint8), f"image is uint8 of shape (1, 3, 8, 8); it must be {FORMS}"),
        (np.zeros((3, 8, 8), np.float32), f"image is float32 of shape (3, 8, 8); it must be {FORMS}"),
        (np.zeros((1, 8, 8, 3), np.float32), f"image is float32 of shape (1, 8, 8, 3); it must be {FORMS}"),
        (np.zeros((8, 8, 3), np.int64), f"image is int64; it must be {FORMS}"),
        (np.zeros((8, 8, 3), np.uint16), f"image is uint16; it must be {FORMS}"),
        (np.zeros((8, 8, 3), bool), f"image is bool; it must be {FORMS}"),
        (np.zeros((1, 3, 8, 8), np.complex64), f"image is complex64; it must be {FORMS}"),
        (np.zeros((0, 8, 8, 3), np.uint8), "image has no pixels: its shape is (0, 8, 8, 3)"),
        (np.zeros((0, 8, 3), np.uint8), "image has no pixels: its shape is (0, 8, 3)"),
        (np.zeros((1, 3, 8, 0), np.float32), "image has no pixels: its shape is (1, 3, 8, 0)"),
        (np.full((1, 3, 8, 8), np.nan, np.float32), "image has NaN in it"),
        (
            np.linspace(0, 255, 192, dtype=np.float32).reshape(1, 3, 8, 8),
            "image has values from 0 to 255; float images lie in [-1, 1]. Give bytes as uint8, or scale: x / 127.5 - 1",
        ),
        (
            np.array([-np.inf, *[0.0] * 47]).reshape(1, 3, 4, 4),
            "image has values from -inf to 0; float images lie in [-1, 1]. "
            "Give bytes as uint8, or scale: x / 127.5 - 1",
        ),
    ],
)  # fmt: skip
def test_bad_images(vae: VAE, image: Any, message: str) -> None:
    for pad in (False, True):
        with pytest.raises(ImageError) as caught:
            vae.encode(image, pad=pad)
        assert str(caught.value) == message


def test_decoder_s_overshoot_may_be_encoded_again(vae: VAE) -> None:
    floats = np.clip(vae.decode(2 * noise(1, CHANNELS, 2, 2), output="float"), -1.5, 1.5)
    assert np.abs(floats).max() > 1.2
    assert vae.encode(floats).shape == (1, CHANNELS, 2, 2)


def test_size_that_is_no_multiple_is_refused(vae: VAE, bytes_vae: VAE) -> None:
    message = (
        "image is 9x16 (height x width), but both must be multiples of 4; the nearest valid sizes are 8x16 or 12x16. "
        "Pad or crop it first, or ask for padding (--pad, pad=True)"
    )
    for opened, image in ((vae, photo(9, 16)), (vae, to_float(photo(1, 9, 16))), (bytes_vae, photo(9, 16))):
        with pytest.raises(SizeError) as caught:
            opened.encode(image)
        assert str(caught.value) == message


def test_float_image_for_a_bundle_of_bytes_is_refused(bytes_vae: VAE) -> None:
    with pytest.raises(ImageError) as caught:
        bytes_vae.encode(to_float(photo(1, 8, 8)))
    assert str(caught.value) == (
        f"image is float, but bundle {bytes_vae.path} takes uint8 images only. Give uint8, or export with "
        "--image-input float"
    )


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (None, "latent is of type NoneType; it must be a numpy array or something that speaks DLPack. "
         "numpy.asarray() may turn it into one"),
        (np.zeros((CHANNELS, 2, 2), np.float32), f"latent has shape (2, 2, 2); {LATENTS}"),
        (np.zeros((1, 4, 2, 2), np.float32), f"latent has 4 channels where this VAE has 2; {LATENTS}"),
        (np.zeros((1, CHANNELS, 2, 2), np.int32), f"latent is int32; {LATENTS}"),
        (np.zeros((1, CHANNELS, 2, 2), np.uint8), f"latent is uint8; {LATENTS}"),
        (np.zeros((0, CHANNELS, 2, 2), np.float32), "latent has no elements: its shape is (0, 2, 2, 2)"),
        (np.zeros((1, CHANNELS, 0, 2), np.float32), "latent has no elements: its shape is (1, 2, 0, 2)"),
        (np.full((1, CHANNELS, 2, 2), np.nan), "latent has NaN or infinity in it"),
        (np.full((1, CHANNELS, 2, 2), np.inf, np.float32), "latent has NaN or infinity in it"),
        (np.full((1, CHANNELS, 2, 2), 1e300), "latent has NaN or infinity in it"),
    ],
)  # fmt: skip
def test_bad_latents(vae: VAE, latent: Any, message: str) -> None:
    with pytest.raises(LatentError) as caught:
        vae.decode(latent)
    assert str(caught.value) == message


@pytest.mark.parametrize("size", [64, (8, 8, 3), (7.5, 8)])
def test_size_that_is_none_is_refused(vae: VAE, size: Any) -> None:
    with pytest.raises(SizeError) as caught:
        vae.decode(noise(1, CHANNELS, 2, 2), size=size)
    assert str(caught.value) == f"size is {size!r}; it must be two whole numbers, (height, width)"


@pytest.mark.parametrize("size", [(4, 8), (9, 8), (8, 12), (8, 0), (-1, 8), (7, 4)])
def test_size_that_a_latent_cannot_come_from_is_refused(vae: VAE, size: tuple[int, int]) -> None:
    with pytest.raises(SizeError) as caught:
        vae.decode(noise(1, CHANNELS, 2, 2), size=size)
    assert str(caught.value) == (
        f"size is {size[0]}x{size[1]} (height x width), but this latent decodes to 8x8, which comes from heights "
        "5 to 8 and widths 5 to 8"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: vae.decode(noise(1, 2, 2, 2), output="png"), "output is 'png'; it must be 'uint8' or 'float'"),
        (lambda vae: vae.encode(photo(8, 8), seed=3), "seed is 3, but nothing is drawn without sample=True"),
        (
            lambda vae: vae.encode(photo(8, 8), sample=True, seed=-1),
            "seed is -1; it must be a whole number, 0 or more",
        ),
        (
            lambda vae: vae.encode(photo(8, 8), sample=True, seed=1.5),
            "seed is 1.5; it must be a whole number, 0 or more",
        ),
        (
            lambda vae: VAE(vae.path, backend="tensorflow"),
            "there is no backend 'tensorflow'; there is: tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu",
        ),
        (lambda vae: VAE(vae.path, device=-1), "device is -1; it must be the number of a CUDA device, 0 or more"),
        (lambda vae: VAE(vae.path, threads=0), "threads is 0; it must be 1 or more, or None for all cores"),
        (lambda vae: VAE(vae.path, threads="2"), "threads is '2'; it must be 1 or more, or None for all cores"),
        (lambda vae: VAE(vae.path, on_nan="ignore"), "on_nan is 'ignore'; it must be 'rerun', 'warn' or 'raise'"),
    ],
)
def test_bad_arguments(vae: VAE, call: Callable[[VAE], object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        call(vae)
    assert str(caught.value) == message


# Sizes


def mirrored(index: int, length: int) -> int:
    """The place that reflection about both ends puts at ``index``."""
    if length == 1:
        return 0
    index %= 2 * (length - 1)
    return min(index, 2 * (length - 1) - index)


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), factor=st.sampled_from([1, 2, 4, 8, 32]))
def test_padding_mirrors_at_the_bottom_and_right(height: int, width: int, factor: int) -> None:
    sizes = SizeRule(factor)
    image = photo(1, height, width)
    padded = pad_image(image, sizes)
    rows = [mirrored(i, height) for i in range(sizes.padded(height, width)[0])]
    columns = [mirrored(i, width) for i in range(sizes.padded(height, width)[1])]
    np.testing.assert_array_equal(padded, image[:, rows][:, :, columns])
    np.testing.assert_array_equal(pad_image(to_float(image), sizes), to_float(padded))


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), batch=st.integers(1, 3))
def test_padded_round_trip_has_the_image_s_size(vae: VAE, height: int, width: int, batch: int) -> None:
    image = photo(batch, height, width)
    latent = vae.encode(image, pad=True)
    full = SizeRule(FACTOR).padded(height, width)
    assert latent.shape == (batch, CHANNELS, full[0] // FACTOR, full[1] // FACTOR)
    np.testing.assert_array_equal(vae.encode(to_float(image), pad=True), latent)
    whole, cropped = vae.decode(latent), vae.decode(latent, size=(height, width))
    assert whole.shape == (batch, *full, 3)
    np.testing.assert_array_equal(cropped, whole[:, :height, :width])
    floats = vae.decode(latent, size=(height, width), output="float")
    np.testing.assert_array_equal(floats, vae.decode(latent, output="float")[:, :, :height, :width])


def test_padding_leaves_a_valid_size_alone(vae: VAE) -> None:
    np.testing.assert_array_equal(vae.encode(photo(8, 12), pad=True), vae.encode(photo(8, 12)))


# Sampling


def test_sample_is_mean_and_std_times_the_seed_s_noise(vae: VAE, bundle: Bundle) -> None:
    image = photo(2, 8, 8)
    session = Session(bundle.path / "encoder.onnx")
    mean, std = session.run(["latent_mean", "latent_std"], {"image": to_float(image)})
    drawn = np.random.Generator(np.random.Philox(7)).standard_normal((2, CHANNELS, 2, 2), np.float32)
    sampled = vae.encode(image, sample=True, seed=7)
    assert sampled.dtype == np.float32
    np.testing.assert_array_equal(sampled, mean + std * drawn)


def test_noise_of_a_seed_never_changes() -> None:
    drawn = np.random.Generator(np.random.Philox(7)).standard_normal(3, np.float32)
    np.testing.assert_array_equal(drawn, np.array([-0.50237358, 0.50684536, 2.0193486], np.float32))


def test_item_of_a_batch_does_not_depend_on_those_after_it(vae: VAE) -> None:
    image = photo(3, 8, 8)
    batch = vae.encode(image, sample=True, seed=1)
    np.testing.assert_array_equal(vae.encode(image[:1], sample=True, seed=1), batch[:1])
    np.testing.assert_array_equal(vae.encode(image[:2], sample=True, seed=1), batch[:2])
    assert not np.array_equal(vae.encode(image[1:2], sample=True, seed=1), batch[1:2])


def test_seeds_differ_and_so_do_calls_without_one(vae: VAE) -> None:
    image = photo(8, 8)
    draws = [vae.encode(image, sample=True, seed=seed) for seed in (0, 1, None, None)]
    draws.append(vae.encode(image))
    assert len({draw.tobytes() for draw in draws}) == 5
    np.testing.assert_array_equal(vae.encode(image, sample=True, seed=np.int64(0)), draws[0])


def test_vae_without_distribution(tmp_path: Path) -> None:
    with VAE(tiny_bundle(tmp_path / "tiny", sampled=False).path) as vae:
        assert vae.encode(photo(8, 8)).shape == (1, CHANNELS, 2, 2)
        with pytest.raises(InputError) as caught:
            vae.encode(photo(8, 8), sample=True)
    assert str(caught.value) == "VAE tiny gives no distribution to sample from; call encode without sample"


# Results that are not finite


@pytest.fixture
def overflowing() -> np.ndarray:
    latent = noise(3, CHANNELS, 2, 2)
    latent[1] = 3e38
    return latent


def test_overflow_is_logged_by_default(vae: VAE, overflowing: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vaedeploy"):
        image = vae.decode(overflowing)
    assert [record.getMessage() for record in caplog.records] == [
        f"decode gave NaN or infinity in item 1 of a batch of 3 (bundle {vae.path})"
    ]
    np.testing.assert_array_equal(image[[0, 2]], vae.decode(overflowing[[0, 2]]))


def test_overflow_is_raised_if_asked(bundle: Bundle, overflowing: np.ndarray, tmp_path: Path) -> None:
    with VAE(bundle.path, on_nan="raise") as vae, pytest.raises(BackendError) as caught:
        vae.decode(overflowing, output="float")
    assert str(caught.value) == f"decode gave NaN or infinity in item 1 of a batch of 3 (bundle {bundle.path})"
    shutil.copytree(bundle.path, tmp_path / "half")
    manifest = tmp_path / "half" / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"fp32"', '"fp16"'))
    with VAE(tmp_path / "half", on_nan="raise") as vae, pytest.raises(BackendError) as caught:
        vae.decode(overflowing)
    assert str(caught.value).endswith(". It was computed in fp16: on_nan='rerun' runs such items again in fp32")


@pytest.fixture
def weak(tmp_path: Path) -> Bundle:
    """A bundle of fp16 whose fast decoder overflows where the portable one does not: from 1e19 on, which it squares."""
    bundle = tiny_bundle(tmp_path / "weak", onnxruntime_form=True)
    path = bundle.graph("decoder", "onnxruntime")
    model = onnx.load(path)
    (first,) = (node for node in model.graph.node if "latent" in node.input)
    first.input[list(first.input).index("latent")] = "rooted"
    square = onnx.helper.make_node("Mul", ["latent", "latent"], ["squared"])
    root = onnx.helper.make_node("Sqrt", ["squared"], ["rooted"])
    model.graph.node.insert(0, root)
    model.graph.node.insert(0, square)
    onnx.save(model, path)
    reopened(bundle).close()
    manifest = bundle.path / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"precision": "fp32"', '"precision": "fp16"'))
    return Bundle.open(bundle.path)


def test_what_half_precision_cannot_hold_runs_again_alone(weak: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    latent = np.abs(noise(3, CHANNELS, 2, 2))
    latent[1] = 1e25
    with VAE(weak.path, on_nan="warn") as vae, VAE(weak.path) as rerunning:
        fast = vae.decode(latent, output="float")
        assert not np.isfinite(fast[1]).all()
        caplog.clear()
        image = rerunning.decode(latent, output="float")
        assert np.isfinite(image).all()
        np.testing.assert_array_equal(
            image[[0, 2]], fast[[0, 2]]
        )  # not run again: the portable form gives the negative
        exact = next(c for c in find_candidates(weak, None) if c.precision == "fp32").open("decoder")
        np.testing.assert_array_equal(image[1], exact.run(["image"], {"latent": latent})[0][1])
    assert [record.getMessage() for record in caplog.records] == [
        f"decode gave NaN or infinity in fp16 in item 1 of a batch of 3 (bundle {weak.path}); run again in fp32"
    ]


def test_what_float32_cannot_hold_either_is_told(weak: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    latent = np.abs(noise(2, CHANNELS, 2, 2))
    latent[0] = 3e38
    with VAE(weak.path) as vae:
        image = vae.decode(latent, output="float")
    assert not np.isfinite(image[0]).all()
    assert np.isfinite(image[1]).all()
    assert [record.getMessage() for record in caplog.records] == [
        f"decode gave NaN or infinity in fp16 in item 0 of a batch of 2 (bundle {weak.path}); run again in fp32",
        f"decode gave NaN or infinity in item 0 of a batch of 2 (bundle {weak.path})",
    ]


# Backends

NO_GPU = pytest.mark.skipif(onnxruntime_cuda.problem() is None, reason="there is a GPU here")
NO_PROVIDER = pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available")


def test_the_cpu_answers_where_there_is_no_gpu(bundle: Bundle) -> None:
    with VAE(bundle.path) as vae, VAE(bundle.path, backend="onnxruntime-cpu") as chosen:
        assert chosen.backend == "onnxruntime-cpu"
        assert vae.backend in BACKENDS


@NO_GPU
def test_a_backend_that_was_asked_for_does_not_fall_back(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"no CUDA provider|no CUDA device"):
        VAE(bundle.path, backend="onnxruntime-cuda")


@NO_GPU
@NO_PROVIDER
def test_a_provider_that_does_not_start_is_not_taken_for_a_gpu(bundle: Bundle) -> None:
    """ONNX Runtime itself goes on, on the CPU."""
    with pytest.raises(BackendError, match=r"CUDA provider did not start on device 0 for .*decoder.onnx"):
        onnxruntime_cuda.Session(bundle.graph("decoder"))


@NO_GPU
@NO_PROVIDER
def test_a_backend_that_cannot_load_a_graph_hands_over_once(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with VAE(bundle.path) as vae:
        cuda = Candidate("onnxruntime-cuda", "fp32", lambda part: onnxruntime_cuda.Session(bundle.graph(part)))
        vae._dispatch = Dispatch(bundle, [cuda, *find_candidates(bundle, "onnxruntime-cpu")], True, "rerun")
        assert vae.backend == "onnxruntime-cuda"
        for _ in range(2):
            assert vae.decode(noise(1, CHANNELS, 2, 2)).shape == (1, 8, 8, 3)
        assert vae.backend == "onnxruntime-cpu"
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(
        "onnxruntime-cuda cannot be used, so onnxruntime-cpu answers: ONNX Runtime's CUDA provider did "
    )


def test_overflow_of_the_encoder_is_seen(tmp_path: Path) -> None:
    image = np.stack([np.full((8, 8, 3), 128, np.uint8), photo(8, 8)])
    image[0, ..., 0] = 127
    path = tiny_bundle(tmp_path / "tiny", gain=1e39, sampled=False).path
    with VAE(path, on_nan="raise") as vae, pytest.raises(BackendError) as caught:
        vae.encode(image)
    assert str(caught.value) == f"encode gave NaN or infinity in item 1 of a batch of 2 (bundle {path})"


# Loading


def reopened(bundle: Bundle) -> VAE:
    """The bundle, after its manifest was made to agree with what its files are now."""
    files = {}
    for name in bundle.manifest.files:
        data = (bundle.path / name).read_bytes()
        files[name] = FileInfo(hashlib.sha256(data).hexdigest(), len(data))
    (bundle.path / "bundle.json").write_bytes(encode_manifest(msgspec.structs.replace(bundle.manifest, files=files)))
    return VAE(bundle.path)


@pytest.mark.parametrize("verification", [None, FAILED])
def test_bundle_that_is_not_verified_warns(tmp_path: Path, verification: Any) -> None:
    path = tiny_bundle(tmp_path / "tiny", verification=verification).path
    with pytest.warns(UnverifiedBundleWarning) as caught:
        VAE(path)
    state = "was never verified" if verification is None else "failed its verification"
    assert [str(warning.message) for warning in caught] == [
        f"bundle {path} {state}; its pictures may be wrong. Run: vaedeploy verify {path}"
    ]
    assert caught[0].filename == __file__


def test_damaged_bundle_is_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    data = bytearray(bundle.file("decoder.onnx.data").read_bytes())
    data[0] ^= 1
    bundle.file("decoder.onnx.data").write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data is altered"):
        VAE(bundle.path)
    assert VAE(bundle.path, verify_hashes=False).decode(noise(1, CHANNELS, 2, 2)).shape == (1, 8, 8, 3)


def test_graph_is_loaded_when_it_is_needed(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    vae = VAE(bundle.path)
    bundle.graph("encoder").write_bytes(b"no graph")
    assert vae.decode(noise(1, CHANNELS, 2, 2)).shape == (1, 8, 8, 3)
    with pytest.raises(BackendError) as caught:
        vae.encode(photo(8, 8))
    assert str(caught.value).startswith(f"ONNX Runtime cannot load {bundle.path / 'encoder.onnx'}: ")


def test_form_made_for_the_backend_is_used(tmp_path: Path) -> None:
    plain, other = tiny_bundle(tmp_path / "plain"), tiny_bundle(tmp_path / "other", onnxruntime_form=True)
    latent = noise(1, CHANNELS, 2, 2)
    with VAE(plain.path) as one, VAE(other.path) as two:
        np.testing.assert_array_equal(two.decode(latent, output="float"), -one.decode(latent, output="float"))
        np.testing.assert_array_equal(two.encode(photo(8, 8)), one.encode(photo(8, 8)))


def test_graph_that_breaks_the_contract_is_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    bundle.graph("decoder").write_bytes(bundle.graph("encoder").read_bytes())
    with reopened(bundle) as vae, pytest.raises(BundleError) as caught:
        vae.decode(noise(1, CHANNELS, 2, 2))
    assert str(caught.value) == (
        f"{bundle.path / 'decoder.onnx'} takes ['image'] and gives ['latent_mean', 'latent_std']; the decoder of this "
        "bundle must take ['latent'] and give ['image', 'image_u8', 'finite']. Export it again: "
        f"vaedeploy export --vae sd15 --weights random:0 --out {bundle.path} --force"
    )


def test_weights_outside_of_the_bundle_are_not_read(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    shutil.move(bundle.file("decoder.onnx.data"), tmp_path / "secret")
    model = onnx.load(bundle.graph("decoder"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    bundle.graph("decoder").write_bytes(model.SerializeToString())
    (bundle.path / "decoder.onnx.data").write_bytes((tmp_path / "secret").read_bytes())
    with reopened(bundle) as vae, pytest.raises(BackendError) as caught:
        vae.decode(noise(1, CHANNELS, 2, 2))
    assert str(caught.value).startswith(f"ONNX Runtime cannot load {bundle.path / 'decoder.onnx'}: ")
    assert "secret" in str(caught.value)


def test_what_a_vae_tells_of_itself(vae: VAE, bundle: Bundle) -> None:
    assert vae.path == bundle.path
    assert vae.manifest == bundle.manifest
    assert vae.latent == bundle.manifest.latent
    assert vae.backend == "onnxruntime-cpu"
    assert vae.limits == Limits(CHANNELS, FACTOR, SizeRule(FACTOR))


def test_closed_vae_says_so(bundle: Bundle) -> None:
    with VAE(bundle.path, backend="onnxruntime-cpu") as vae:
        vae.decode(noise(1, CHANNELS, 2, 2))
    vae.close()
    for call in (lambda: vae.decode(noise(1, CHANNELS, 2, 2)), lambda: vae.encode(photo(8, 8))):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == f"this VAE is closed; open it again: VAE({str(bundle.path)!r})"


# Threads


def test_many_threads_give_what_one_gives(bundle: Bundle) -> None:
    shapes = [(b, h, w) for b in (1, 2) for h in (2, 5, 9) for w in (3, 8)]
    latents = [noise(b, CHANNELS, h, w, seed=n) for n, (b, h, w) in enumerate(shapes * 4)]
    images = [photo(b, h * FACTOR, w * FACTOR, seed=n) for n, (b, h, w) in enumerate(shapes * 4)]

    def work(vae: VAE, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (
            vae.decode(latents[n]),
            vae.decode(latents[n], output="float"),
            vae.encode(images[n], sample=True, seed=n),
        )

    with VAE(bundle.path) as serial:
        wanted = [work(serial, n) for n in range(len(latents))]
    with VAE(bundle.path) as shared, ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(lambda n: work(shared, n), range(len(latents))), wanted, strict=True):
            for one, other in zip(got, want, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_cores_are_those_that_the_process_may_use() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from vaedeploy.runtime.onnxruntime_cpu import usable_cores; print(usable_cores())"
    )
    assert _python(script).stdout == "1\n"
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_threads_are_passed_on(bundle: Bundle) -> None:
    for threads, wanted in ((3, 3), (None, usable_cores())):
        session = Session(bundle.graph("decoder"), threads)
        assert session._session.get_session_options().intra_op_num_threads == wanted


# What is imported, and what is missing


def test_import_is_light() -> None:
    script = "import sys, vaedeploy.runtime; print(*sorted(sys.modules))"
    modules = {name.split(".")[0] for name in _python(script).stdout.split()}
    assert "numpy" in modules
    assert not modules & {"torch", "onnx", "onnxruntime", "onnxscript", "diffusers", "click", "rich", "PIL"}


def test_runtime_needs_numpy_msgspec_and_one_backend_only(bundle: Bundle) -> None:
    script = f"""
import sys
import numpy as np
from vaedeploy.runtime import VAE
with VAE({str(bundle.path)!r}) as vae:
    vae.decode(vae.encode(np.zeros((8, 8, 3), np.uint8)))
print(*sorted(sys.modules))
"""
    modules = {name.split(".")[0] for name in _python(script).stdout.split()}
    assert "onnxruntime" in modules
    assert not modules & {"torch", "onnx", "onnxscript", "diffusers", "click", "rich", "PIL"}


def test_backend_that_is_not_installed_is_told(bundle: Bundle) -> None:
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    script = f"""
import sys
sys.modules["onnxruntime"] = None
from vaedeploy.runtime import VAE
VAE({str(bundle.path)!r})
"""
    done = _python(script)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "vaedeploy.errors.BackendError: ONNX Runtime cannot be imported (import of onnxruntime halted; None in "
        'sys.modules). Install it: pip install "vaedeploy[cpu]"'
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is set in Linux's way")
def test_too_little_memory_is_told_as_such(bundle: Bundle) -> None:
    script = f"""
import resource
import numpy as np
from vaedeploy.runtime import VAE
vae = VAE({str(bundle.path)!r})
vae.decode(np.zeros((1, 2, 2, 2), np.float32))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
vae.decode(np.zeros((1, 2, 1500, 1500), np.float32))
"""
    done = _python(script)
    last = done.stderr.splitlines()[-1]
    graph = bundle.graph("decoder")
    assert last.startswith(
        f"vaedeploy.errors.BackendError: ONNX Runtime failed in {graph} on latent (1, 2, 1500, 1500): "
    )
    assert last.endswith(". There is not enough memory: give a smaller batch or size")


def _python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-B", "-c", script], capture_output=True, text=True, check=False)
