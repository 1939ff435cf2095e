"""``VAE.encode`` and ``VAE.decode`` for arrays in GPU memory. Their dtype and shape are checked, their values are not.

Images are not copied to the host. To check for NaN and infinity, a decode copies one flag per item to the host, and an
encode copies the latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from vaedeploy.bundle.manifest import Manifest
from vaedeploy.errors import ImageError, InputError, LatentError
from vaedeploy.runtime.cuda import CudaDevice, check_stream
from vaedeploy.runtime.device import OnDevice
from vaedeploy.runtime.dispatch import Dispatch
from vaedeploy.runtime.dlpack import as_device_array, is_on_device, to_caller
from vaedeploy.runtime.types import SupportsDLPack
from vaedeploy.values.interface import Tensor, spatial_axes
from vaedeploy.values.latent import frames_text


def encode(
    dispatch: Dispatch, manifest: Manifest, gpu: CudaDevice, image: Any, stream: Any, outputs: int
) -> list[SupportsDLPack]:
    """The first ``outputs`` outputs of the encoder for an image in GPU memory, in arrays there."""
    array, after = _import_array(image, "image", gpu, stream, ImageError)
    interface = manifest.interface("encoder")
    if not interface.accepts(array.tensor):
        n = manifest.latent.image_channels
        form = f"(B, H, W, {n}) uint8" if interface.input == "image_u8" else f"(B, {n}, H, W) float32 in [-1, 1]"
        raise ImageError(
            f"image is {array.tensor.dtype} of shape {array.tensor.shape}; in the GPU's memory it must be {form}, as "
            "the encoder of this bundle takes it. For the other kind export with --image-input, or copy the image to "
            "the host"
        )
    batch, height, width = interface.pixels(array.tensor.shape)
    manifest.latent.sizes.check(height, width)
    gives = interface.gives(batch, height, width)
    results = {name: gpu.array(gives[name]) for name in interface.outputs[:outputs]}
    dispatch.run("encoder", list(results), {interface.input: array}, results, after)
    return [to_caller(result) for result in results.values()]


def decode(
    dispatch: Dispatch,
    manifest: Manifest,
    gpu: CudaDevice,
    latent: Any,
    output: Literal["uint8", "float"],
    size: tuple[int, int] | None,
    out: Any,
    stream: Any,
) -> SupportsDLPack:
    """``VAE.decode`` for a latent in GPU memory."""
    array, after = _import_array(latent, "latent", gpu, stream, LatentError)
    spec, interface = manifest.latent, manifest.interface("decoder")
    if not interface.accepts(array.tensor):
        raise LatentError(
            f"latent is {array.tensor.dtype} of shape {array.tensor.shape}; in the GPU's memory it must be "
            f"(B, {spec.channels}, h, w) float32 (torch: .float()){frames_text(array.tensor.shape)}"
        )
    batch, *full = interface.pixels(array.tensor.shape)
    cut = None if size is None else spec.sizes.check_cut(size, (full[0], full[1]))
    name = "image_u8" if output == "uint8" else "image"
    expected = interface.gives(batch, *full)[name]
    result, busy = (gpu.array(expected), ()) if out is None else _import_out(out, expected, gpu, cut)
    dispatch.run("decoder", [name, "finite"], {"latent": array}, {name: result}, (*after, *busy))
    returned: SupportsDLPack = to_caller(result, cut, spatial_axes(name)) if out is None else out
    return returned


def _import_array(
    value: Any, what: str, gpu: CudaDevice, stream: Any, error: type[InputError], write: bool = False
) -> tuple[OnDevice, Sequence[Any]]:
    """The caller's array, and the streams to wait for before it is used. what: names it in messages."""
    if stream is not None:
        check_stream(stream, gpu)
    arrival = gpu.stream_of_thread()
    try:
        array = as_device_array(value, gpu, arrival, write)
    except Exception as cause:  # each library raises classes of its own
        raise error(
            f"{what} of type {type(value).__name__} cannot be read through DLPack: {str(cause).rstrip('.')}. It must "
            "be contiguous, without a gradient, and on the VAE's own device"
        ) from cause
    return array, (arrival,) if stream is None else (arrival, stream)


def _import_out(out: Any, expected: Tensor, gpu: CudaDevice, cut: object) -> tuple[OnDevice, Sequence[Any]]:
    """The caller's array for the result, and the streams to wait for before it is written."""
    if cut is not None:
        raise InputError("out and size cannot both be given for an array in the GPU's memory; cut it afterwards")
    if not is_on_device(out):
        raise InputError("out is not in the GPU's memory, where the latent is; it must be on the same device")
    array, busy = _import_array(out, "out", gpu, None, InputError, write=True)
    if array.tensor != expected:
        raise InputError(
            f"out is {array.tensor.dtype} of shape {array.tensor.shape}; it must be {expected.dtype} of shape "
            f"{expected.shape}"
        )
    return array, busy
