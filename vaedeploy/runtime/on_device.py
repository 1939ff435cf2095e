"""``VAE``'s calls with arrays in the GPU's memory, which are checked by their type and shape.

Pictures are not copied to the host. To see whether all is finite, a flag an item is, of a decode, and of an encode the
latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from vaedeploy.bundle.manifest import Manifest
from vaedeploy.errors import ImageError, InputError, LatentError
from vaedeploy.runtime.cuda import CudaDevice, check_stream
from vaedeploy.runtime.device import OnDevice, Tensor
from vaedeploy.runtime.dispatch import Halves
from vaedeploy.runtime.dlpack import as_device_array, is_on_device, to_caller

SINGLE = np.dtype(np.float32)


def encode(halves: Halves, manifest: Manifest, gpu: CudaDevice, image: Any, stream: Any) -> Any:
    """See ``VAE.encode``."""
    given, after = _take(image, "image", gpu, stream, ImageError)
    if manifest.image_input == "uint8":
        name, form, channels, axes = "image_u8", "(B, H, W, 3) uint8", 3, (1, 2)
    else:
        name, form, channels, axes = "image", "(B, 3, H, W) float32 in [-1, 1]", 1, (2, 3)
    shape, dtype = given.tensor.shape, given.tensor.dtype
    wanted = np.dtype(np.uint8) if manifest.image_input == "uint8" else SINGLE
    if dtype != wanted or len(shape) != 4 or shape[channels] != 3 or 0 in shape:
        raise ImageError(
            f"image is {dtype} of shape {shape}; in the GPU's memory it must be {form}, as the encoder of this bundle "
            "takes it. For the other kind export with --image-input, or copy the image to the host"
        )
    latent = manifest.latent
    height, width = (shape[axis] for axis in axes)
    latent.sizes.check(height, width)
    made = Tensor((shape[0], latent.channels, height // latent.factor, width // latent.factor), SINGLE)
    output = "latent_mean" if latent.sampled else "latent"
    result = gpu.array(made)
    halves.run("encoder", [output], {name: given}, {output: result}, after)
    return to_caller(result)


def decode(
    halves: Halves,
    manifest: Manifest,
    gpu: CudaDevice,
    latent: Any,
    output: Literal["uint8", "float"],
    size: tuple[int, int] | None,
    out: Any,
    stream: Any,
) -> Any:
    """See ``VAE.decode``."""
    given, after = _take(latent, "latent", gpu, stream, LatentError)
    spec, shape = manifest.latent, given.tensor.shape
    if given.tensor.dtype != SINGLE or len(shape) != 4 or shape[1] != spec.channels or 0 in shape:
        raise LatentError(
            f"latent is {given.tensor.dtype} of shape {shape}; in the GPU's memory it must be "
            f"(B, {spec.channels}, h, w) float32 (torch: .float())"
        )
    full = shape[2] * spec.factor, shape[3] * spec.factor
    cut = None if size is None else spec.sizes.check_cut(size, full)
    if output == "uint8":
        name, made, axes = "image_u8", Tensor((shape[0], *full, 3), np.dtype(np.uint8)), (1, 2)
    else:
        name, made, axes = "image", Tensor((shape[0], 3, *full), SINGLE), (2, 3)
    result, busy = (gpu.array(made), ()) if out is None else _fill(out, made, gpu, cut)
    halves.run("decoder", [name, "finite"], {"latent": given}, {name: result}, (*after, *busy))
    return to_caller(result, cut, axes) if out is None else out


def _take(
    value: Any, what: str, gpu: CudaDevice, stream: Any, error: type[InputError], write: bool = False
) -> tuple[OnDevice, Sequence[Any]]:
    """The caller's array, and what is to be waited for."""
    if stream is not None:
        check_stream(stream, gpu)
    arrival = gpu.stream_of_thread()
    try:
        given = as_device_array(value, gpu, arrival, write)
    except Exception as cause:  # what is raised is the other library's own choice
        raise error(
            f"{what} of type {type(value).__name__} cannot be read through DLPack: {str(cause).rstrip('.')}. It must "
            "be contiguous, without a gradient, and on the VAE's own device"
        ) from cause
    return given, (arrival,) if stream is None else (arrival, stream)


def _fill(out: Any, made: Tensor, gpu: CudaDevice, cut: object) -> tuple[OnDevice, Sequence[Any]]:
    """The caller's array that the result goes to, and what is to be waited for before it is written."""
    if cut is not None:
        raise InputError("out and size cannot both be given for an array in the GPU's memory; cut it afterwards")
    if not is_on_device(out):
        raise InputError("out is not in the GPU's memory, where the latent is; it must be on the same device")
    place, busy = _take(out, "out", gpu, None, InputError, write=True)
    if place.tensor != made:
        raise InputError(
            f"out is {place.tensor.dtype} of shape {place.tensor.shape}; it must be {made.dtype} of shape {made.shape}"
        )
    return place, busy
