"""``VAE.encode`` and ``VAE.decode`` for arrays in host memory and Pillow images, and the calls that warm a VAE up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.errors import ImageError, InputError, LatentError
from vaedeploy.images.pixels import to_float
from vaedeploy.runtime.arrays import as_numpy, as_pixels, check_image, check_latent, check_out, pad_image
from vaedeploy.runtime.device import Array
from vaedeploy.runtime.dispatch import Dispatch
from vaedeploy.runtime.failures import no_memory_explained
from vaedeploy.values.kinds import PARTS, Part
from vaedeploy.values.latent import as_size


@no_memory_explained()
def encode(dispatch: Dispatch, bundle: Bundle, image: Any, outputs: int, pad: bool) -> list[NDArray[np.float32]]:
    """The first ``outputs`` outputs of the encoder for ``image``: the mean, or the mean and the deviation."""
    interface = bundle.manifest.interface("encoder")
    return _run(dispatch, "encoder", interface.outputs[:outputs], {interface.input: _pixels(bundle, image, pad)})


def _pixels(bundle: Bundle, image: Any, pad: bool) -> NDArray[Any]:
    """``image`` as the encoder's graph takes it."""
    manifest = bundle.manifest
    channels = manifest.latent.image_channels
    pixels = check_image(as_pixels(image, channels), channels)
    if manifest.image_input == "uint8" and pixels.dtype != np.uint8:
        raise ImageError(
            f"image is float, but bundle {bundle.path} takes uint8 images only. Give uint8, or export with "
            "--image-input float"
        )
    if pad:
        pixels = pad_image(pixels, manifest.latent.sizes)
    if pixels.dtype == np.uint8 and manifest.image_input == "float":
        pixels = to_float(pixels)
    _, height, width = manifest.interface("encoder").pixels(pixels.shape)
    manifest.latent.sizes.check(height, width)
    return np.ascontiguousarray(pixels)


@no_memory_explained()
def decode(
    dispatch: Dispatch,
    bundle: Bundle,
    latent: Any,
    output: Literal["uint8", "float"],
    size: tuple[int, int] | None,
    out: NDArray[Any] | None,
) -> NDArray[Any]:
    """``VAE.decode`` for a latent in host memory."""
    manifest = bundle.manifest
    values = check_latent(as_numpy(latent, "latent", LatentError), manifest.latent)
    interface, name = manifest.interface("decoder"), "image_u8" if output == "uint8" else "image"
    batch, *full = interface.pixels(values.shape)
    height, width = full if size is None else manifest.latent.sizes.check_cut(size, (full[0], full[1]))
    results: dict[str, Array] = {}
    if out is not None:
        check_out(out, interface.gives(batch, height, width)[name])
        if [height, width] == full and _can_be_filled(out, values):
            results = {name: out}
    image, _ = _run(dispatch, "decoder", [name, "finite"], {interface.input: values}, results)
    if image is out:
        return out
    if [height, width] != full:
        image = image[:, :height, :width] if output == "uint8" else image[:, :, :height, :width]
    if out is None:
        return np.ascontiguousarray(image)
    np.copyto(out, image)
    return out


@no_memory_explained()
def compute(
    dispatch: Dispatch, bundle: Bundle, part: Part, value: Any, outputs: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """``VAE.compute``."""
    if part not in PARTS:
        raise InputError(f"there is no half {part!r} of a VAE; there is: {', '.join(PARTS)}")
    interface = bundle.manifest.interface(part)
    if missing := [name for name in outputs if name not in interface.outputs]:
        raise InputError(f"the {part} has no output {missing[0]!r}; it has {', '.join(interface.outputs)}")
    if part == "encoder":
        given = _pixels(bundle, value, pad=False)
    else:
        given = check_latent(as_numpy(value, "latent", LatentError), bundle.manifest.latent)
    # In the graph's order, in which the decoder's last one says what is finite.
    run = [name for name in interface.outputs if name in outputs or name == "finite"]
    computed = dict(zip(run, _run(dispatch, part, run, {interface.input: given}), strict=True))
    return {name: computed[name] for name in outputs}


@no_memory_explained()
def warm_up(dispatch: Dispatch, bundle: Bundle, sizes: Iterable[tuple[int, int]], batch: int) -> None:
    """Run both halves once at each of ``sizes``, (height, width) in pixels, on ``batch`` items of zeros.

    Raises SizeError before anything runs for a size that the VAE does not take, InputError where there is none.
    """
    rule = bundle.manifest.latent.sizes
    checked = []
    try:
        sizes = list(sizes)
    except TypeError as error:
        raise InputError(f"sizes is {sizes!r}; give pairs of height and width, such as [(512, 512)]") from error
    for size in sizes:
        height, width = as_size(size)
        rule.check(height, width)
        checked.append((height, width))
    if not checked:
        raise InputError("there is no size to warm up at; give those of the images to come, such as [(512, 512)]")
    if not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch is {batch!r}; it must be 1 or more")
    for height, width in checked:
        for part in PARTS:
            interface = bundle.manifest.interface(part)
            given = interface.takes(batch, height, width)
            _run(dispatch, part, interface.outputs, {interface.input: np.zeros(given.shape, given.dtype)})


def _can_be_filled(out: NDArray[Any], values: NDArray[Any]) -> bool:
    """Whether a backend may write its result into ``out`` itself, while it reads ``values``."""
    return out.flags.c_contiguous and out.flags.aligned and not np.may_share_memory(out, values)


def _run(
    dispatch: Dispatch,
    part: Part,
    outputs: Sequence[str],
    inputs: dict[str, Array],
    results: dict[str, Array] | None = None,
) -> list[NDArray[Any]]:
    return dispatch.run(part, outputs, inputs, results)  # type: ignore[return-value]  # host arrays in, host arrays out
