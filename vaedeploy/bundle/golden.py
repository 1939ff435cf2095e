"""``golden.safetensors``: inputs, and the reference outputs that PyTorch computes from them in float64."""

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
"""The path of the golden cases in a bundle."""


@dataclass(frozen=True)
class GoldenCase:
    """Inputs and reference outputs at one shape.

    The reference is computed in float64 and stored as float32, which adds an error of 6e-8.

    photo: (B, H, W, N) uint8, what the encoder encodes; N is the contract's ``image_channels``.
    latents: the encoder's outputs by name, each (B, C, h, w) float32, as the diffusion model sees them. The decoder
        decodes the first.
    image: (B, N, H, W) float32, not clamped: the decoder's output.
    round_trip: whether ``photo`` is also encoded and decoded again in verification.
    full: (height, width) of the photograph whose middle each item of ``photo`` is. The file does not keep it, so a case
        that is read has none.
    """

    name: str
    photo: NDArray[np.uint8]
    latents: dict[str, NDArray[np.float32]]
    image: NDArray[np.float32]
    round_trip: bool
    full: tuple[tuple[int, int], ...] = ()


def encode_golden(cases: Sequence[GoldenCase], identity: str) -> bytes:
    """The bytes of ``golden.safetensors``. identity: ``Reference.identity`` of the VAE."""
    arrays: dict[str, NDArray[Any]] = {}
    for case in cases:
        arrays |= {f"{case.name}.photo": case.photo, f"{case.name}.image": case.image}
        arrays |= {f"{case.name}.{name}": value for name, value in case.latents.items()}
    table = [{"name": case.name, "latents": [*case.latents], "round_trip": case.round_trip} for case in cases]
    return safetensors_bytes(arrays, {"vae_identity": identity, "cases": json.dumps(table)})


def decode_golden(data: bytes, identity: str) -> tuple[GoldenCase, ...]:
    """Read the bytes of ``golden.safetensors``. Raises BundleError if they are damaged or belong to another VAE."""
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
    except (safetensors.SafetensorError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise BundleError(f"{NAME} cannot be read: {error!r}. Run: vaedeploy verify BUNDLE --photos DIR") from error
    if header.get("vae_identity") != identity:
        raise BundleError(f"{NAME} is of another VAE: {header.get('vae_identity')}, not {identity}")
    return cases
