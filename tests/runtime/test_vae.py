"""The runtime on tiny bundles, with the real ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bit_flips import flip
from bundle_folders import edit
from onnx import numpy_helper
from tiny_bundle import FAILED, tiny_bundle
from tiny_inputs import CHANNELS, FACTOR, noise, photo

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, BundleError, InputError
from vaedeploy.images.pixels import to_float
from vaedeploy.runtime import VAE, Limits, UnverifiedBundleWarning
from vaedeploy.runtime.onnxruntime_cpu import Session
from vaedeploy.system.files import HOLDS
from vaedeploy.values.latent import SizeRule

FORMS = "(H, W, 3) or (B, H, W, 3) uint8, or (B, 3, H, W) float in [-1, 1]"
LATENTS = "it must be (B, 2, h, w) float"


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
            "there is no backend 'tensorflow'; there is: tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu, "
            "openvino",
        ),
        (
            lambda vae: VAE(vae.path, backend="cuda"),
            "there is no backend 'cuda'; there is: tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu, "
            "openvino. Did you mean onnxruntime-cuda?",
        ),
        (
            lambda vae: VAE(vae.path, backend="onnxruntime_cpu"),
            "there is no backend 'onnxruntime_cpu'; there is: tensorrt, tensorrt-rtx, onnxruntime-cuda, "
            "onnxruntime-cpu, openvino. Did you mean onnxruntime-cpu?",
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


@pytest.mark.parametrize("verification", [None, FAILED])
def test_bundle_that_is_not_verified_warns(tmp_path: Path, verification: Any) -> None:
    path = tiny_bundle(tmp_path / "tiny", verification=verification).path
    with pytest.warns(UnverifiedBundleWarning) as caught:
        VAE(path)
    state = "was never verified" if verification is None else "failed its verification"
    assert [str(warning.message) for warning in caught] == [
        f"bundle {path} {state}; its images may be wrong. Run: vaedeploy verify {path}"
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
    with pytest.raises(BundleError, match=r"is damaged: encoder\.onnx has 8 bytes where bundle\.json says"):
        vae.encode(photo(8, 8))


@pytest.mark.skipif(not HOLDS, reason="files cannot be held open here")
def test_open_vae_keeps_its_weights_while_another_takes_its_place(tmp_path: Path) -> None:
    bundle, latent = tiny_bundle(tmp_path / "tiny"), noise(1, CHANNELS, 2, 2)
    with VAE(tiny_bundle(tmp_path / "other", seed=5).path) as other, VAE(bundle.path) as vae:
        expected = VAE(bundle.path).decode(latent)
        tiny_bundle(bundle.path, seed=5, force=True)
        np.testing.assert_array_equal(vae.decode(latent), expected)
        np.testing.assert_array_equal(VAE(bundle.path).decode(latent), other.decode(latent))
        assert not np.array_equal(vae.decode(latent), other.decode(latent))


@pytest.mark.parametrize("name", ["decoder.onnx", "decoder.onnx.data"])
def test_bit_that_flips_after_the_opening_gives_no_image(tmp_path: Path, name: str) -> None:
    with VAE(tiny_bundle(tmp_path / "tiny").path) as vae:
        flip(vae.path / name, 200)
        with pytest.raises(BundleError, match=rf"is damaged: {name} is altered: its sha256 is "):
            vae.decode(noise(1, CHANNELS, 2, 2))


def test_weights_elsewhere_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would take a file of that name from the current directory."""
    bundle = tiny_bundle(tmp_path / "tiny")
    monkeypatch.chdir(bundle.path)
    edit(bundle, lambda told: told["files"].pop("decoder.onnx.data"))
    with VAE(bundle.path) as vae, pytest.raises(BackendError, match=r"decoder\.onnx\.data not found from the table"):
        vae.decode(noise(1, CHANNELS, 2, 2))


def test_what_is_no_graph_is_told(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    size = bundle.graph("encoder").stat().st_size
    bundle.graph("encoder").write_bytes(b"n" * size)
    with VAE(bundle.path, verify_hashes=False) as vae, pytest.raises(BackendError) as caught:
        vae.encode(photo(8, 8))
    assert str(caught.value).startswith(f"ONNX Runtime cannot load {bundle.path / 'encoder.onnx'}: ")


def test_form_made_for_the_backend_is_used(tmp_path: Path) -> None:
    plain, other = tiny_bundle(tmp_path / "plain"), tiny_bundle(tmp_path / "other", onnxruntime_form=True)
    latent = noise(1, CHANNELS, 2, 2)
    with VAE(plain.path) as one, VAE(other.path) as two:
        np.testing.assert_array_equal(two.decode(latent, output="float"), -one.decode(latent, output="float"))
        np.testing.assert_array_equal(two.encode(photo(8, 8)), one.encode(photo(8, 8)))


def test_what_a_vae_tells_of_itself(vae: VAE, bundle: Bundle) -> None:
    assert vae.path == bundle.path
    assert vae.manifest == bundle.manifest
    assert vae.latent == bundle.manifest.latent
    assert vae.backend == "onnxruntime-cpu"
    assert vae.limits == Limits(CHANNELS, FACTOR, SizeRule(FACTOR), 3)


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
