"""Images and latents as the runtime takes them, and those that it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from examples import at_most
from hypothesis import given
from hypothesis import strategies as st
from tiny_inputs import CHANNELS, FACTOR, noise, photo

from vaedeploy.errors import ImageError, InputError, LatentError, SizeError
from vaedeploy.images.pixels import to_float
from vaedeploy.runtime import VAE
from vaedeploy.runtime.arrays import pad_image
from vaedeploy.values.latent import SizeRule

FORMS = "(H, W, 3) or (B, H, W, 3) uint8, or (B, 3, H, W) float in [-1, 1]"
LATENTS = "it must be (B, 2, h, w) float"


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
        ("photo.png", "image is of type str; it must be a numpy array or something that supports DLPack. "
         "Read the file first: an image with PIL.Image.open"),
        ([[0, 1], [2, 3]], "image is of type list; it must be a numpy array or something that supports DLPack. "
         "numpy.asarray() may turn it into one"),
        (photo(8, 8)[..., 0], f"image is uint8 of shape (8, 8); it must be {FORMS}"),
        (np.zeros((8, 8, 4), np.uint8), f"image is uint8 of shape (8, 8, 4); it must be {FORMS}. This VAE takes "
         "RGB, and the image has a fourth channel: flatten it onto a background, or leave the channel out where it is "
         "opaque everywhere"),
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
        "Pad or crop it first, or ask for padding (--pad, pad=True, or /v1/encode?pad=true of a server)"
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
        (None, "latent is of type NoneType; it must be a numpy array or something that supports DLPack. "
         "numpy.asarray() may turn it into one"),
        (np.zeros((CHANNELS, 2, 2), np.float32), f"latent has shape (2, 2, 2); {LATENTS}. Give "
         "latent[None] for a batch of one"),
        (np.zeros((1, CHANNELS, 1, 2, 2), np.float32), f"latent has shape (1, 2, 1, 2, 2); {LATENTS}. It has an axis "
         "for one frame, as those of Wan and Qwen-Image do: give latent[:, :, 0]"),
        (np.zeros((1, CHANNELS, 5, 2, 2), np.float32), f"latent has shape (1, 2, 5, 2, 2); {LATENTS}. It has an axis "
         "for 5 frames, and a bundle decodes images: give the first frame, latent[:, :, 0], or decode the video with "
         "diffusers"),
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


# Sizes


def mirrored(index: int, length: int) -> int:
    """The place that reflection about both ends puts at ``index``."""
    if length == 1:
        return 0
    index %= 2 * (length - 1)
    return min(index, 2 * (length - 1) - index)


@at_most(50)
@given(height=st.integers(1, 20), width=st.integers(1, 20), factor=st.sampled_from([1, 2, 4, 8, 32]))
def test_padding_mirrors_at_the_bottom_and_right(height: int, width: int, factor: int) -> None:
    sizes = SizeRule(factor)
    image = photo(1, height, width)
    padded = pad_image(image, sizes)
    rows = [mirrored(i, height) for i in range(sizes.padded(height, width)[0])]
    columns = [mirrored(i, width) for i in range(sizes.padded(height, width)[1])]
    np.testing.assert_array_equal(padded, image[:, rows][:, :, columns])
    np.testing.assert_array_equal(pad_image(to_float(image), sizes), to_float(padded))


@at_most(30)
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
