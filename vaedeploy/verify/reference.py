"""Golden cases: inputs and what PyTorch in float64 makes of them, computed once and kept with a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from vaedeploy.errors import BundleError, ExportError
from vaedeploy.latent import LatentSpec
from vaedeploy.photos import Photo, Shape, crop_batch
from vaedeploy.progress import Progress, silent
from vaedeploy.tensors import safetensors_bytes

if TYPE_CHECKING:
    from vaedeploy.source import Reference

NAME = "golden.safetensors"
WHAT = "Computing the float64 reference"


@dataclass(frozen=True)
class GoldenCase:
    """Inputs and reference outputs at one shape. The reference is float64, stored as float32 (an error of 6e-8).

    photo: (B, H, W, 3) uint8.
    latents: the encoder graph's outputs by name, (B, C, h, w) float32, diffusion space. The first is what is decoded.
    image: (B, 3, H, W) float32, not clamped: what the decoder makes of that latent.
    """

    name: str
    photo: Photo
    latents: dict[str, NDArray[np.float32]]
    image: NDArray[np.float32]
    round_trip: bool


def compute_golden(
    reference: Reference, photos: list[Photo], shapes: Sequence[Shape], progress: Progress = silent
) -> tuple[GoldenCase, ...]:
    """Run ``reference`` in float64 on crops of ``photos``.

    The latent contract is applied here in numpy, apart from the graph's own code, so that a mistake in one shows.
    Raises ExportError where the outputs are not finite or do not have the shapes of the contract.
    """
    total = 2 * sum(map(_pixels, shapes))
    done = 0.0
    cases: dict[str, GoldenCase] = {}
    progress(WHAT, done, total)
    # The largest comes first: what others leave to the allocator would come on top of the memory that it needs.
    for shape in sorted(shapes, key=_pixels, reverse=True):
        photo = crop_batch(photos, shape, first=sum(len(case.photo) for case in cases.values()))
        raw = _run_float64(reference.encoder, photo.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1)
        progress(WHAT, done := done + _pixels(shape), total)
        latents = diffusion_space(raw, reference.latent)
        first = next(iter(latents.values()))
        (image,) = _run_float64(reference.decoder, model_space(first, reference.latent))
        progress(WHAT, done := done + _pixels(shape), total)
        _check(shape, latents, image, reference.latent)
        cases[shape.name] = GoldenCase(shape.name, photo, latents, image.astype(np.float32), shape.round_trip)
    return tuple(cases[shape.name] for shape in shapes)


def _pixels(shape: Shape) -> float:
    """What a shape's time grows with."""
    return float(shape.batch * shape.height * shape.width)


def write_golden(cases: Sequence[GoldenCase], identity: str) -> bytes:
    """The bytes of ``golden.safetensors``; ``identity`` is the VAE's."""
    arrays: dict[str, NDArray[Any]] = {}
    for case in cases:
        arrays |= {f"{case.name}.photo": case.photo, f"{case.name}.image": case.image}
        arrays |= {f"{case.name}.{name}": value for name, value in case.latents.items()}
    table = [{"name": c.name, "latents": [*c.latents], "round_trip": c.round_trip} for c in cases]
    return safetensors_bytes(arrays, {"vae_identity": identity, "cases": json.dumps(table)})


def read_golden(data: bytes, identity: str) -> tuple[GoldenCase, ...]:
    """Read what ``write_golden`` wrote. Raises BundleError where it is damaged or another VAE's."""
    try:
        arrays = safetensors.numpy.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        cases = tuple(
            GoldenCase(
                row["name"],
                arrays[f"{row['name']}.photo"],
                {name: arrays[f"{row['name']}.{name}"] for name in row["latents"]},
                arrays[f"{row['name']}.image"],
                row["round_trip"],
            )
            for row in json.loads(header["cases"])
        )
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{NAME} cannot be read: {error!r}. Run: vaedeploy verify BUNDLE --photos DIR") from error
    if header.get("vae_identity") != identity:
        raise BundleError(f"{NAME} is of another VAE: {header.get('vae_identity')}, not {identity}")
    return cases


def _run_float64(module: Any, value: NDArray[Any]) -> tuple[NDArray[np.float64], ...]:
    import torch

    from vaedeploy.float64 import call_in_float64

    return tuple(r.numpy() for r in call_in_float64(module, torch.from_numpy(np.ascontiguousarray(value))))


def model_space(latent: NDArray[np.float32], spec: LatentSpec) -> NDArray[np.float64]:
    """(B, C, h, w) of the diffusion model's as the decoder of PyTorch takes it."""
    scale, shift = _vectors(spec)
    result: NDArray[np.float64] = latent / scale + shift
    return result


def diffusion_space(raw: tuple[NDArray[np.float64], ...], latent: LatentSpec) -> dict[str, NDArray[np.float32]]:
    """What the encoder of PyTorch gives, (B, C, h, w) each, as the outputs of the graph, by name."""
    scale, shift = _vectors(latent)
    if not latent.sampled:
        return {"latent": ((raw[0] - shift) * scale).astype(np.float32)}
    mean, std = raw
    return {
        "latent_mean": ((mean - shift) * scale).astype(np.float32),
        "latent_std": (std * abs(scale)).astype(np.float32),
    }


def _vectors(latent: LatentSpec) -> tuple[Any, Any]:
    """Scale and shift in float32, as the graph has them, widened, to multiply (B, C, h, w)."""
    return tuple(
        np.asarray(v, dtype=np.float32).astype(np.float64).reshape(1, -1, 1, 1) for v in (latent.scale, latent.shift)
    )  # type: ignore[return-value]


def _check(shape: Shape, latents: dict[str, NDArray[np.float32]], image: NDArray[Any], latent: LatentSpec) -> None:
    spatial = (shape.height // latent.factor, shape.width // latent.factor)
    wanted = dict.fromkeys(latents, (shape.batch, latent.channels, *spatial))
    wanted["image"] = (shape.batch, 3, shape.height, shape.width)
    for name, value in {**latents, "image": image}.items():
        if value.shape != wanted[name]:
            raise ExportError(
                f"PyTorch gives {name} of shape {value.shape} for an image of {shape.height}x{shape.width}; "
                f"the latent contract wants {wanted[name]}"
            )
        if not np.isfinite(value).all():
            raise ExportError(f"PyTorch itself gives NaN or infinity in {name}; the weights are not usable")
