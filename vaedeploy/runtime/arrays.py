"""Checks the arrays and arguments that callers pass in, and converts arrays to what the graphs take."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import ImageError, InputError, LatentError
from vaedeploy.values.interface import Tensor, channel_axis, spatial_axes
from vaedeploy.values.latent import RGB, RGBA, LatentSpec, SizeRule, frames_text
from vaedeploy.values.words import counted

FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))

RANGE = 1.5
"""The largest absolute value that a float image may have. Decoders overshoot [-1, 1] by a few tenths, and their output
may be encoded again; images in [0, 255], or normalised by a data set's mean and deviation, exceed this."""


def image_forms(channels: int) -> str:
    """The forms of images that a VAE of that many image channels takes, in words."""
    return f"(H, W, {channels}) or (B, H, W, {channels}) uint8, or (B, {channels}, H, W) float in [-1, 1]"


def as_numpy(value: Any, what: str, error: type[InputError]) -> NDArray[Any]:
    """``value``, a numpy array or an array that supports DLPack, as a numpy array on the same memory.

    what: names the value in messages. error: the class to raise if ``value`` cannot be read as an array.
    """
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__"):
        file = isinstance(value, str | Path)
        raise error(
            f"{what} is of type {type(value).__name__}; it must be a numpy array or something that supports DLPack. "
            + ("Read the file first: an image with PIL.Image.open" if file else "numpy.asarray() may turn it into one")
        )
    try:
        return np.from_dlpack(value)
    # Each library raises classes of its own: torch has BufferError, RuntimeError, and more.
    except Exception as cause:
        why = str(cause).rstrip(".")
        raise error(
            f"{what} of type {type(value).__name__} cannot be read through DLPack: {why}. It must be on the CPU, "
            "without a gradient, and of a type that numpy has (torch: .detach().cpu().float())"
        ) from cause


def as_pixels(image: Any, channels: int) -> NDArray[Any]:
    """An image, which is an array as for ``as_numpy`` or a Pillow image, as a numpy array.

    channels: 4 to keep the opacity of a Pillow image that has it.
    """
    if not hasattr(image, "__dlpack__"):
        from vaedeploy.images.files import is_pillow, read_pillow

        if is_pillow(image):
            return read_pillow(image, opacity=channels == RGBA)
    return as_numpy(image, "image", ImageError)


def check_image(image: NDArray[Any], channels: int) -> NDArray[Any]:
    """The image as (B, H, W, channels) uint8 or (B, channels, H, W) float32, not necessarily contiguous.

    Raises ImageError for other shapes and dtypes, for an image without pixels, and for NaN or values beyond ``RANGE``.
    """
    if image.dtype != np.uint8 and image.dtype not in FLOATS:
        raise ImageError(f"image is {image.dtype}; it must be {image_forms(channels)}")
    batch = image[None] if image.dtype == np.uint8 and image.ndim == 3 else image
    found = batch.shape[channel_axis("image_u8" if image.dtype == np.uint8 else "image")] if batch.ndim == 4 else None
    if found != channels:
        raise ImageError(
            f"image is {image.dtype} of shape {image.shape}; it must be {image_forms(channels)}"
            + _opacity_text(found, channels)
        )
    if image.size == 0:
        raise ImageError(f"image has no pixels: its shape is {image.shape}")
    if image.dtype == np.uint8:
        return batch
    low, high = image.min(), image.max()
    if np.isnan(low) or np.isnan(high):
        raise ImageError("image has NaN in it")
    if low < -RANGE or high > RANGE:
        raise ImageError(
            f"image has values from {low:.6g} to {high:.6g}; float images lie in [-1, 1]. "
            "Give bytes as uint8, or scale: x / 127.5 - 1"
        )
    return image.astype(np.float32, copy=False)


def _opacity_text(found: int | None, wanted: int) -> str:
    """What a message adds about an image whose opacity is missing, or is one channel too many."""
    if (found, wanted) == (RGB, RGBA):
        return ". This VAE takes RGBA, and the image is RGB: add opacity as a fourth channel, 255 (1.0 in floats)"
    if (found, wanted) == (RGBA, RGB):
        return (
            ". This VAE takes RGB, and the image has a fourth channel: flatten it onto a background, or leave the "
            "channel out where it is opaque everywhere"
        )
    return ""


def pad_image(image: NDArray[Any], sizes: SizeRule) -> NDArray[Any]:
    """Extend an image at its bottom and right to the next valid size.

    The added pixels mirror the image about its last row and column, back and forth where the image is smaller than the
    extension; a single row or column is repeated.
    """
    axes = spatial_axes("image_u8" if image.dtype == np.uint8 else "image")
    height, width = (image.shape[axis] for axis in axes)
    to_height, to_width = sizes.padded(height, width)
    if (height, width) == (to_height, to_width):
        return image
    widths = [(0, 0)] * 4
    widths[axes[0]], widths[axes[1]] = (0, to_height - height), (0, to_width - width)
    return np.pad(image, widths, mode="reflect")


def check_latent(latent: NDArray[Any], spec: LatentSpec) -> NDArray[np.float32]:
    """The latent as contiguous (B, C, h, w) float32.

    Raises LatentError for other shapes and dtypes, for a latent without elements, and for NaN and infinity.
    """
    wanted = f"it must be (B, {spec.channels}, h, w) float"
    if latent.dtype not in FLOATS:
        raise LatentError(f"latent is {latent.dtype}; {wanted}")
    if latent.ndim != 4:
        more = ". Give latent[None] for a batch of one" if latent.ndim == 3 else frames_text(latent.shape)
        raise LatentError(f"latent has shape {latent.shape}; {wanted}{more}")
    if latent.shape[1] != spec.channels:
        raise LatentError(
            f"latent has {counted(latent.shape[1], 'channel')} where this VAE has {spec.channels}; {wanted}"
        )
    if latent.size == 0:
        raise LatentError(f"latent has no elements: its shape is {latent.shape}")
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(latent, np.float32)
    if not np.isfinite(result).all():
        raise LatentError("latent has NaN or infinity in it")
    return result


def check_seed(seed: int, sample: bool) -> int:
    """``seed`` as an int. Raises InputError if it is no whole number, is negative, or is given without ``sample``."""
    if not sample:
        raise InputError(f"seed is {seed}, but nothing is drawn without sample=True")
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise InputError(f"seed is {seed!r}; it must be a whole number, 0 or more")
    return number


def refuse_stream(stream: object) -> None:
    """Raise InputError for a stream that was given with an array in host memory."""
    if stream is not None:
        raise InputError("stream is only for arrays in GPU memory, and this array is in host memory; leave stream out")


def check_out(out: NDArray[Any], result: Tensor) -> None:
    """Raise InputError unless ``out`` is a writeable array of the shape and dtype of ``result``."""
    if not isinstance(out, np.ndarray):
        raise InputError(f"out is of type {type(out).__name__}; it must be a numpy array")
    if out.shape != result.shape or out.dtype != result.dtype or not out.flags.writeable:
        kind = "" if out.flags.writeable else "read-only "
        raise InputError(
            f"out is {kind}{out.dtype} of shape {out.shape}; it must be writeable {result.dtype} of shape "
            f"{result.shape}"
        )
