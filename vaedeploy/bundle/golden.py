"""``golden.safetensors``: inputs and what PyTorch in float64 makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from vaedeploy.errors import BundleError
from vaedeploy.system.tensors import safetensors_bytes

NAME = "golden.safetensors"


@dataclass(frozen=True)
class GoldenCase:
    """Inputs and reference outputs at one shape. The reference is float64, stored as float32 (an error of 6e-8).

    photo: (B, H, W, 3) uint8.
    latents: the encoder graph's outputs by name, (B, C, h, w) float32, diffusion space. The first is what is decoded.
    image: (B, 3, H, W) float32, not clamped: what the decoder makes of that latent.
    """

    name: str
    photo: NDArray[np.uint8]
    latents: dict[str, NDArray[np.float32]]
    image: NDArray[np.float32]
    round_trip: bool


def encode_golden(cases: Sequence[GoldenCase], identity: str) -> bytes:
    """The bytes of ``golden.safetensors``; ``identity`` is the VAE's."""
    arrays: dict[str, NDArray[Any]] = {}
    for case in cases:
        arrays |= {f"{case.name}.photo": case.photo, f"{case.name}.image": case.image}
        arrays |= {f"{case.name}.{name}": value for name, value in case.latents.items()}
    table = [{"name": c.name, "latents": [*c.latents], "round_trip": c.round_trip} for c in cases]
    return safetensors_bytes(arrays, {"vae_identity": identity, "cases": json.dumps(table)})


def decode_golden(data: bytes, identity: str) -> tuple[GoldenCase, ...]:
    """Read what ``encode_golden`` wrote. Raises BundleError where it is damaged or another VAE's."""
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
