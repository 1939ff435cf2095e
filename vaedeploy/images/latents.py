"""Latent files: safetensors files with a latent, and what is known about the VAE that made it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors
from numpy.typing import NDArray

from vaedeploy.errors import ContractError, LatentError
from vaedeploy.images.tensors import faults_told, tensors_of
from vaedeploy.system.atomic import write_file
from vaedeploy.system.files import special
from vaedeploy.system.tensors import safetensors_bytes, safetensors_metadata
from vaedeploy.values.latent import LatentSpec, frames_text

LATENT_KEY = "latent"
"""The name of the latent's tensor in a latent file."""

LISTED = 3
"""How many of a file's tensors a message lists."""

FLOATS: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
"""The types that a latent may have in a file, by safetensors' names."""


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

    def told_apart(self, identity: str, name: str, spec: LatentSpec) -> str | None:
        """A sentence that says that a VAE other than the one of this identity, name and contract made the latent, and
        how their contracts differ; None if this VAE made it, or the file does not say.
        """
        if self.vae_identity in (None, identity):
            return None
        fields = self.spec.differences(spec) if self.spec else []
        differ = ", ".join(f"{field} is {there} there and {here} here" for field, there, here in fields)
        return (
            f"{self.vae_name or 'another VAE'} ({_short(self.vae_identity)}) made the latent, {name} "
            f"({_short(identity)}) decodes it" + (f"; their latent contracts differ: {differ}" if differ else "")
        )


def _short(identity: str | None) -> str:
    return (identity or "")[:12]


def read_latent(path: str | Path) -> LatentFile:
    """Read a latent file: a safetensors file with a tensor ``latent`` (B, C, h, w) of float16, float32 or float64.

    Raises LatentError if the file is missing, truncated, not a safetensors file or without that tensor, if the tensor
    has another rank or type, no elements, NaN or infinity, and if the metadata cannot be used.
    """
    path = Path(path)
    if fault := special(path):
        raise LatentError(f"{path} {fault}; give a latent file")
    with tensors_of(path, f"there is no file {path}") as file:
        _check_names(path, file.keys())
        tensor = file.get_slice(LATENT_KEY)
        _check_tensor(path, tensor.get_dtype(), tensor.get_shape())
        return _latent_file(path, file.get_tensor(LATENT_KEY), file.metadata() or {})


def latent_from_bytes(data: bytes, name: str) -> LatentFile:
    """The content of a latent file, read as ``read_latent`` does. ``name`` is for messages."""
    with faults_told(name):
        tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    _check_names(name, tensors)
    tensor: Any = tensors[LATENT_KEY]
    _check_tensor(name, tensor["dtype"], tensor["shape"])
    dtype = FLOATS[tensor["dtype"]]
    latent = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return _latent_file(name, latent, safetensors_metadata(data))


def _check_names(name: Path | str, names: Iterable[str]) -> None:
    if LATENT_KEY not in names:
        first = sorted(names)
        others = f" and {len(first) - LISTED} more" if len(first) > LISTED else ""
        raise LatentError(
            f"{name} has no tensor {LATENT_KEY!r}, so it is not a latent file; it has "
            f"{', '.join(first[:LISTED]) or 'none'}{others}"
        )


def _check_tensor(name: Path | str, dtype: str, sides: Iterable[int]) -> None:
    shape = tuple(sides)
    if dtype not in FLOATS or len(shape) != 4:
        raise LatentError(
            f"{name} has a latent of type {dtype} and shape {shape}; it must be (B, C, h, w) of type F32, F16 or F64"
            f"{frames_text(shape)}"
        )


def _latent_file(name: Path | str, tensor: NDArray[Any], metadata: dict[str, str]) -> LatentFile:
    with np.errstate(over="ignore"):
        latent = tensor.astype(np.float32, copy=False)
    if latent.size == 0:
        raise LatentError(f"{name} has a latent without elements: its shape is {latent.shape}")
    if not np.isfinite(latent).all():
        raise LatentError(f"{name} has NaN or infinity in its latent")
    return LatentFile(
        latent,
        metadata.get("vaedeploy.identity"),
        metadata.get("vaedeploy.vae"),
        _read_json(name, metadata, "vaedeploy.latent", LatentSpec),
        _read_json(name, metadata, "vaedeploy.size", tuple[int, int]),
    )


def write_latent(path: str | Path, file: LatentFile) -> None:
    """Write a latent file in one step. Equal arguments give equal bytes.

    Raises OutputError for a path that cannot be written to, LatentError for a latent that is not (B, C, h, w) float32.
    """
    write_file(Path(path), latent_bytes(file))


def latent_bytes(file: LatentFile) -> bytes:
    """The content of a latent file. Raises LatentError for a latent that is not (B, C, h, w) float32."""
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
    return safetensors_bytes({LATENT_KEY: latent}, metadata)


def _read_json(path: Path | str, metadata: dict[str, str], key: str, kind: Any) -> Any:
    """The JSON under ``key`` in a file's metadata, decoded as the type ``kind``; None if there is no such key."""
    if key not in metadata:
        return None
    try:
        return msgspec.json.decode(metadata[key], type=kind)
    except (msgspec.MsgspecError, ContractError, RecursionError) as error:
        raise LatentError(
            f"{path} has {key} {metadata[key]!r} in its metadata, which cannot be used: {error}"
        ) from error
