"""Computing golden cases: inputs and PyTorch's outputs for them in float64, which a bundle keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle.golden import GoldenCase
from vaedeploy.errors import ExportError
from vaedeploy.images.photos import Photo, crop_batch, full_sizes
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.interface import Interface
from vaedeploy.values.kinds import Part
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.reference import eval_mode
from vaedeploy.values.shapes import size_text
from vaedeploy.verify.shapes import Shape

if TYPE_CHECKING:
    from vaedeploy.values.reference import Reference


WHAT = "Computing the float64 reference"


def compute_golden(
    reference: Reference, photos: list[Photo], shapes: Sequence[Shape], progress: Progress = silent
) -> tuple[GoldenCase, ...]:
    """Run ``reference`` in float64 on crops of ``photos``, one case for each of ``shapes``.

    The latent contract is applied in numpy here, not by the code that was traced, so that a mistake in either shows.
    Raises ExportError where a module fails, and where its outputs are not finite, do not have the shapes of the
    contract, or are negative standard deviations.
    """
    from vaedeploy.graph.probe import check_deviation

    total = 2 * sum(map(_pixels, shapes))
    done = 0.0
    cases: dict[str, GoldenCase] = {}
    progress(WHAT, done, total)
    # The largest comes first: what smaller ones leave in the allocator would add to the memory that it needs.
    for shape in sorted(shapes, key=_pixels, reverse=True):
        first = sum(len(case.photo) for case in cases.values())
        photo = crop_batch(
            photos,
            shape.batch,
            shape.height,
            shape.width,
            first=first,
            channels=reference.latent.image_channels,
        )
        image_input = photo.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1
        raw = _run_float64(reference, "encoder", image_input, shape)
        progress(WHAT, done := done + _pixels(shape), total)
        if len(raw) > 1:
            check_deviation(float(raw[1].min()), f"the encoder ({type(reference.encoder).__name__})")
        latents = diffusion_space(raw, reference.latent)
        latent = next(iter(latents.values()))
        (image,) = _run_float64(reference, "decoder", model_space(latent, reference.latent), shape)
        progress(WHAT, done := done + _pixels(shape), total)
        _check(shape, {**latents, "image": image}, reference.latent)
        _check_finite(reference, "encoder", image_input, latents)
        _check_finite(reference, "decoder", model_space(latent, reference.latent), {"image": image})
        full = full_sizes(photos, shape.batch, first)
        cases[shape.name] = GoldenCase(shape.name, photo, latents, image.astype(np.float32), shape.round_trip, full)
    return tuple(cases[shape.name] for shape in shapes)


def _pixels(shape: Shape) -> float:
    """All pixels of a batch, with which the time of a case grows."""
    return float(shape.batch * shape.height * shape.width)


def _run_float64(
    reference: Reference, part: Part, value: NDArray[Any], shape: Shape
) -> tuple[NDArray[np.float64], ...]:
    import torch

    from vaedeploy.numerics.float64 import call_in_float64

    module = getattr(reference, part)
    try:
        with eval_mode(module):
            return tuple(r.numpy() for r in call_in_float64(module, torch.from_numpy(np.ascontiguousarray(value))))
    except Exception as error:
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ExportError(
            f"the {part} ({type(module).__name__}) fails at {size_text(shape.batch, shape.height, shape.width)} (batch "
            f"x height x width, in pixels), one of the sizes that every VAE is verified at: {why}"
        ) from error


def model_space(latent: NDArray[np.float32], spec: LatentSpec) -> NDArray[np.float64]:
    """A latent (B, C, h, w) as the diffusion model has it -> as PyTorch's decoder takes it."""
    scale, shift = _vectors(spec)
    result: NDArray[np.float64] = latent / scale + shift
    return result


def diffusion_space(raw: tuple[NDArray[np.float64], ...], latent: LatentSpec) -> dict[str, NDArray[np.float32]]:
    """The outputs of PyTorch's encoder, (B, C, h, w) each -> the outputs of the graph, by name."""
    scale, shift = _vectors(latent)
    converted = [(raw[0] - shift) * scale, *(std * abs(scale) for std in raw[1:])]
    names = Interface("encoder", latent).outputs
    return {name: value.astype(np.float32) for name, value in zip(names, converted, strict=True)}


def _vectors(latent: LatentSpec) -> tuple[Any, Any]:
    """Scale and shift, shaped to apply to (B, C, h, w): rounded to float32, as the graph has them, then float64."""
    return tuple(
        np.asarray(v, dtype=np.float32).astype(np.float64).reshape(1, -1, 1, 1) for v in (latent.scale, latent.shift)
    )  # type: ignore[return-value]


def _check(shape: Shape, outputs: dict[str, NDArray[Any]], latent: LatentSpec) -> None:
    halves = (Interface("encoder", latent), Interface("decoder", latent))
    wanted = {n: t for half in halves for n, t in half.gives(shape.batch, shape.height, shape.width).items()}
    for name, value in outputs.items():
        if value.shape != wanted[name].shape:
            raise ExportError(
                f"PyTorch gives {name} of shape {value.shape} for an image of {shape.height}x{shape.width}; "
                f"the latent contract wants {wanted[name].shape}"
            )


def _check_finite(reference: Reference, part: Part, given: NDArray[Any], gives: dict[str, NDArray[Any]]) -> None:
    """Raise ExportError where a half gives NaN or infinity for ``given``, with the place where that begins."""
    name = next((name for name, value in gives.items() if not np.isfinite(value).all()), None)
    if name is None:
        return
    from torch import from_numpy

    from vaedeploy.graph.broken import broken_tensor, first_break

    module = getattr(reference, part)
    if tensor := broken_tensor(module):
        where = f"has {tensor}. Load or train it again"
    else:
        place = first_break(module, from_numpy(np.ascontiguousarray(given, np.float32)))
        where = f"has it first {place or 'in float64'}, and none of its tensors has"
    label = f"the {part} ({type(module).__name__})"
    raise ExportError(f"PyTorch itself gives NaN or infinity in {name}: {label} {where}")
