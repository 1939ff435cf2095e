"""What services ask of the runtime: moments, Pillow images, results in memory of the caller's, and warming up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_gpu import HostDevice
from PIL import Image
from tiny_bundle import tiny_bundle
from tiny_inputs import CHANNELS, noise, photo

from vaedeploy.bundle import Bundle
from vaedeploy.errors import ImageError, InputError, SizeError
from vaedeploy.images.files import read_image
from vaedeploy.images.pixels import to_float
from vaedeploy.runtime import VAE
from vaedeploy.runtime.onnxruntime_cpu import Session

# Moments


def test_moments_are_what_samples_are_drawn_from(vae: VAE, bundle: Bundle) -> None:
    image = photo(2, 8, 12)
    mean, std = vae.encode_moments(image)
    expected = Session(bundle.path / "encoder.onnx").run(["latent_mean", "latent_std"], {"image": to_float(image)})
    np.testing.assert_array_equal([mean, std], expected)
    drawn = np.random.Generator(np.random.Philox(7)).standard_normal(mean.shape, np.float32)
    np.testing.assert_array_equal(vae.encode(image, sample=True, seed=7), mean + std * drawn)


def test_moments_of_a_padded_image(vae: VAE) -> None:
    assert vae.encode_moments(photo(7, 5), pad=True).std.shape == (1, CHANNELS, 2, 2)
    with pytest.raises(SizeError):
        vae.encode_moments(photo(7, 5))


def test_moments_of_a_vae_without_a_distribution(tmp_path: Path) -> None:
    with VAE(tiny_bundle(tmp_path / "tiny", sampled=False).path) as vae, pytest.raises(InputError) as caught:
        vae.encode_moments(photo(8, 8))
    assert str(caught.value) == "VAE tiny gives no distribution of latents; call encode, which gives the latent"


# Outputs by name


def test_outputs_by_name_come_from_one_run(vae: VAE) -> None:
    image = photo(2, 8, 12)
    latent, std = vae.encode_moments(image)
    encoded = vae.compute("encoder", image, ["latent_std", "latent_mean"])
    assert list(encoded) == ["latent_std", "latent_mean"]
    np.testing.assert_array_equal([encoded["latent_mean"], encoded["latent_std"]], [latent, std])
    np.testing.assert_array_equal(vae.compute("encoder", image, ["latent_std"])["latent_std"], std)
    latent[1] = 3.4e38
    decoded = vae.compute("decoder", latent, ["finite", "image_u8", "image"])
    np.testing.assert_array_equal(decoded["finite"], [True, False])
    np.testing.assert_array_equal(decoded["image_u8"], vae.decode(latent))
    np.testing.assert_array_equal(decoded["image"], vae.decode(latent, output="float"))
    assert list(vae.compute("decoder", latent, ["image"])) == ["image"]


def test_outputs_and_halves_that_do_not_exist(vae: VAE) -> None:
    latent = noise(1, CHANNELS, 2, 2)
    with pytest.raises(InputError, match=r"^the decoder has no output 'latent_mean'; it has image, image_u8, finite$"):
        vae.compute("decoder", latent, ["image", "latent_mean"])
    with pytest.raises(InputError, match=r"^there is no half 'decode' of a VAE; there is: encoder, decoder$"):
        vae.compute("decode", latent, ["image"])  # type: ignore[arg-type]
    with pytest.raises(SizeError):
        vae.compute("encoder", photo(7, 5), ["latent_mean"])


# Pillow's images


def turned(image: Image.Image) -> Image.Image:
    image.getexif()[0x0112] = 6
    return image


@pytest.mark.parametrize(
    "prepare",
    [lambda i: i, lambda i: i.convert("L"), lambda i: i.convert("P"), lambda i: i.convert("CMYK"), turned],
    ids=["RGB", "grey", "palette", "CMYK", "turned"],
)
def test_pillow_images_are_read_as_files_are(
    vae: VAE, tmp_path: Path, prepare: Callable[[Image.Image], Image.Image]
) -> None:
    image = prepare(Image.fromarray(photo(8, 12)))
    file = tmp_path / "image.tiff"
    image.save(file, exif=image.getexif())
    expected = vae.encode(read_image(file))
    np.testing.assert_array_equal(vae.encode(image), expected)
    with Image.open(file) as opened:
        np.testing.assert_array_equal(vae.encode(opened), expected)


def test_pillow_images_that_cannot_be_encoded(vae: VAE, tmp_path: Path) -> None:
    clear = Image.fromarray(photo(8, 8)).convert("RGBA")
    clear.putalpha(7)
    with pytest.raises(ImageError, match=r"^Pillow's image has transparent pixels"):
        vae.encode(clear)
    with pytest.raises(ImageError) as caught:
        vae.encode(Image.new("RGB", (4, 0)))
    assert str(caught.value) == "Pillow's image has no pixels: it is 0x4 (height x width)"
    file = tmp_path / "cut.png"
    Image.fromarray(photo(64, 64)).save(file)
    file.write_bytes(file.read_bytes()[:2000])
    with (
        Image.open(file) as cut,
        pytest.raises(ImageError, match=f"^Pillow's image {file} cannot be decoded, it is truncated or broken: "),
    ):
        vae.encode(cut)


# Results in the caller's memory


@pytest.mark.parametrize("output", ["uint8", "float"])
def test_out_is_written_by_the_backend_itself(vae: VAE, output: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    run = Session.run

    def recorded(self: Session, *arguments: Any) -> Any:
        computed.append(run(self, *arguments))
        return computed[-1]

    monkeypatch.setattr(Session, "run", recorded)
    latent = noise(2, CHANNELS, 4, 4)
    expected = vae.decode(latent, output=output)
    out = np.zeros_like(expected)
    assert vae.decode(latent, output=output, out=out) is out
    assert computed[-1][0] is out
    np.testing.assert_array_equal(out, expected)


def test_out_that_no_backend_can_write_is_filled_all_the_same(vae: VAE) -> None:
    latent = noise(2, CHANNELS, 2, 2)
    expected = vae.decode(latent, output="float")
    memory = np.zeros(expected.nbytes + 1, np.uint8)
    unaligned = memory[1:].view(np.float32).reshape(expected.shape)
    for out in (expected.copy()[:, :, ::-1], np.asfortranarray(expected * 0), unaligned):
        assert vae.decode(latent, output="float", out=out) is out
        np.testing.assert_array_equal(out, expected)


def test_out_may_share_its_memory_with_the_latent(vae: VAE) -> None:
    out = np.zeros((1, 3, 8, 8), np.float32)
    latent = out.reshape(-1)[: CHANNELS * 4].reshape(1, CHANNELS, 2, 2)
    latent[...] = noise(1, CHANNELS, 2, 2)
    expected = vae.decode(latent.copy(), output="float")
    np.testing.assert_array_equal(vae.decode(latent, output="float", out=out), expected)


def test_out_of_an_engine(gpu: HostDevice, engine_bundle: Bundle, expected: VAE) -> None:
    latent = noise(3, 2, 2, 2)
    with VAE(engine_bundle.path, "tensorrt-rtx") as vae:
        out = np.zeros((3, 8, 8, 3), np.uint8)
        assert vae.decode(latent, out=out) is out
    np.testing.assert_array_equal(out, expected.decode(latent))


# Warming up


def test_ready_after_warming_up(bundle: Bundle) -> None:
    with VAE(bundle.path) as vae:
        vae.decode(noise(1, CHANNELS, 2, 2))
        assert not vae.ready  # one half only
        vae.warm_up([(8, 8), (8, 12)], batch=2)
        assert vae.ready
    assert not vae.ready


def test_warming_up_runs_both_halves_at_every_size(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    run = Session.run

    def recorded(self: Session, outputs: Any, inputs: Any, *more: Any) -> Any:
        ran.append((self.graph.stem, *(array.shape for array in inputs.values()), vae.ready))
        return run(self, outputs, inputs, *more)

    monkeypatch.setattr(Session, "run", recorded)
    with VAE(bundle.path) as vae:
        vae.warm_up([(8, 8), (8, 12)], batch=2)
        assert ran == [
            ("encoder", (2, 3, 8, 8), False),
            ("decoder", (2, CHANNELS, 2, 2), False),
            ("encoder", (2, 3, 8, 12), False),
            ("decoder", (2, CHANNELS, 2, 3), False),
        ]
        assert vae.ready


@pytest.mark.parametrize(
    ("sizes", "batch", "error", "message"),
    [
        ([], 1, InputError, "there is no size to warm up at; give those of the images to come, such as [(512, 512)]"),
        (512, 1, InputError, "sizes is 512; give pairs of height and width, such as [(512, 512)]"),
        ([8], 1, SizeError, "size is 8; it must be two whole numbers, (height, width)"),
        ([(8, 8)], 0, InputError, "batch is 0; it must be 1 or more"),
        (
            [(8, 8), (8, 9)],
            1,
            SizeError,
            "image is 8x9 (height x width), but both must be multiples of 4; the nearest valid sizes are 8x8 or 8x12. "
            "Pad or crop it first, or ask for padding (--pad, pad=True, or /v1/encode?pad=true of a server)",
        ),
    ],
)
def test_sizes_that_cannot_be_warmed_up(
    bundle: Bundle, sizes: Any, batch: int, error: type[Exception], message: str
) -> None:
    with VAE(bundle.path) as vae:
        with pytest.raises(error) as caught:
            vae.warm_up(sizes, batch=batch)
        assert str(caught.value) == message
        assert not vae.ready


def test_a_vae_serves_while_it_warms_up(bundle: Bundle) -> None:
    latent = noise(1, CHANNELS, 2, 2)
    with VAE(bundle.path) as vae:
        expected = vae.decode(latent)
        warming = threading.Thread(target=vae.warm_up, args=([(8 * n, 8) for n in range(1, 20)],))
        warming.start()
        for _ in range(20):
            np.testing.assert_array_equal(vae.decode(latent), expected)
        warming.join()
        assert vae.ready
