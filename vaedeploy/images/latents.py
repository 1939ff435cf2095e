"""Latent files: safetensors files with a latent and what is known of the VAE that made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors
from numpy.typing import NDArray

from vaedeploy.errors import ContractError, LatentError
from vaedeploy.system.atomic import write_file
from vaedeploy.system.oserrors import reason, special
from vaedeploy.system.tensors import safetensors_bytes
from vaedeploy.values.latent import LatentSpec, frames_text

LATENT_KEY = "latent"
"""The name of the latent's tensor in a latent file."""


@dataclass(frozen=True)
class LatentFile:
    """A latent and the metadata of its file; each piece of metadata is None if the file does not have it.

    latent: (B, C, h, w) float32, as the diffusion model sees it.
    vae_identity, vae_name: identity and name of the VAE that made the latent.
    spec: the latent contract of that VAE.
    size: (H, W) in pixels of the image before it was padded.
    """

    latent: NDArray[np.float32]
    vae_identity: str | None = None
    vae_name: str | None = None
    spec: LatentSpec | None = None
    size: tuple[int, int] | None = None


def read_latent(path: str | Path) -> LatentFile:
    """Read a latent file: a safetensors file with a tensor ``latent`` (B, C, h, w) of float16, float32 or float64.

    Raises LatentError if the file is missing, truncated, not a safetensors file or without that tensor, if the tensor
    has another rank or type, no elements, NaN or infinity, and if the metadata cannot be used.
    """
    path = Path(path)
    if fault := special(path):
        raise LatentError(f"{path} {fault}; give a latent file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            if LATENT_KEY not in names:
                raise LatentError(f"{path} has no tensor {LATENT_KEY!r}; it has {', '.join(sorted(names)) or 'none'}")
            tensor = file.get_slice(LATENT_KEY)
            if tensor.get_dtype() not in ("F16", "F32", "F64") or len(tensor.get_shape()) != 4:
                shape = tuple(tensor.get_shape())
                raise LatentError(
                    f"{path} has a latent of type {tensor.get_dtype()} and shape {shape}; "
                    f"it must be (B, C, h, w) of type F32, F16 or F64{frames_text(shape)}"
                )
            with np.errstate(over="ignore"):
                latent = file.get_tensor(LATENT_KEY).astype(np.float32, copy=False)
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise LatentError(f"there is no file {path}") from error
    except OSError as error:
        raise LatentError(f"{path} cannot be read: {reason(error)}") from error
    except safetensors.SafetensorError as error:
        raise LatentError(f"{path} is not a safetensors file, or is truncated: {error}") from error
    if latent.size == 0:
        raise LatentError(f"{path} has a latent without elements: its shape is {latent.shape}")
    if not np.isfinite(latent).all():
        raise LatentError(f"{path} has NaN or infinity in its latent")
    return LatentFile(
        latent,
        metadata.get("vaedeploy.identity"),
        metadata.get("vaedeploy.vae"),
        _read_json(path, metadata, "vaedeploy.latent", LatentSpec),
        _read_json(path, metadata, "vaedeploy.size", tuple[int, int]),
    )


def write_latent(path: str | Path, file: LatentFile) -> None:
    """Write a latent file in one step. Equal arguments give equal bytes.

    Raises OutputError for a path that cannot be written to, LatentError for a latent that is not (B, C, h, w) float32.
    """
    latent = file.latent
    if latent.dtype != np.float32 or latent.ndim != 4:
        raise LatentError(f"latent is {latent.dtype} of shape {latent.shape}; it must be (B, C, h, w) float32")
    entries = {
        "vaedeploy.identity": file.vae_identity,
        "vaedeploy.vae": file.vae_name,
        "vaedeploy.latent": None if file.spec is None else msgspec.json.encode(file.spec).decode(),
        "vaedeploy.size": None if file.size is None else msgspec.json.encode(file.size).decode(),
    }
    metadata = {key: value for key, value in entries.items() if value is not None}
    write_file(Path(path), safetensors_bytes({LATENT_KEY: latent}, metadata))


def _read_json(path: Path, metadata: dict[str, str], key: str, kind: Any) -> Any:
    """The JSON under ``key`` in a file's metadata, decoded as the type ``kind``; None if there is no such key."""
    if key not in metadata:
        return None
    try:
        return msgspec.json.decode(metadata[key], type=kind)
    except (msgspec.MsgspecError, ContractError, RecursionError) as error:
        raise LatentError(
            f"{path} has {key} {metadata[key]!r} in its metadata, which cannot be used: {error}"
        ) from error
