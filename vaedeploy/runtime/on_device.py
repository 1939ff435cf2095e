"""``VAE``'s calls with arrays in the GPU's memory, which are checked by their type and shape.

Pictures are not copied to the host. To see whether all is finite, a flag an item is, of a decode, and of an encode the
latent.
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
from vaedeploy.values.interface import Tensor, spatial_axes


def encode(dispatch: Dispatch, manifest: Manifest, gpu: CudaDevice, image: Any, stream: Any) -> Any:
    """See ``VAE.encode``."""
    given, after = _take(image, "image", gpu, stream, ImageError)
    interface = manifest.interface("encoder")
    if not interface.accepts(given.tensor):
        form = "(B, H, W, 3) uint8" if interface.input == "image_u8" else "(B, 3, H, W) float32 in [-1, 1]"
        raise ImageError(
            f"image is {given.tensor.dtype} of shape {given.tensor.shape}; in the GPU's memory it must be {form}, as "
            "the encoder of this bundle takes it. For the other kind export with --image-input, or copy the image to "
            "the host"
        )
    batch, height, width = interface.pixels(given.tensor.shape)
    manifest.latent.sizes.check(height, width)
    output = interface.outputs[0]
    result = gpu.array(interface.gives(batch, height, width)[output])
    dispatch.run("encoder", [output], {interface.input: given}, {output: result}, after)
    return to_caller(result)


def decode(
    dispatch: Dispatch,
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
    spec, interface = manifest.latent, manifest.interface("decoder")
    if not interface.accepts(given.tensor):
        raise LatentError(
            f"latent is {given.tensor.dtype} of shape {given.tensor.shape}; in the GPU's memory it must be "
            f"(B, {spec.channels}, h, w) float32 (torch: .float())"
        )
    batch, *full = interface.pixels(given.tensor.shape)
    cut = None if size is None else spec.sizes.check_cut(size, (full[0], full[1]))
    name = "image_u8" if output == "uint8" else "image"
    made = interface.gives(batch, *full)[name]
    result, busy = (gpu.array(made), ()) if out is None else _fill(out, made, gpu, cut)
    dispatch.run("decoder", [name, "finite"], {"latent": given}, {name: result}, (*after, *busy))
    return to_caller(result, cut, spatial_axes(name)) if out is None else out


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
