"""Weights files: recognised by their content, read without running anything that they hold, and fitted to a VAE."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vaedeploy.errors import WeightsError
from vaedeploy.preset import Architecture
from vaedeploy.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

LISTED = 10
"""Names that a message lists before it only counts."""

MAX_HEADER = 100_000_000
"""Bytes: the largest header that safetensors itself accepts."""

VAE_PREFIXES = ("first_stage_model.", "vae.")
"""What a full checkpoint puts before its VAE's names: CompVis and everything after it, and repackaged ones."""

TRAINING_PREFIXES = ("loss.", "model_ema.")
"""What CompVis' trainer leaves in a VAE's checkpoint: the discriminator and perceptual loss, and a second, averaged
copy of the weights under names of its own. Neither takes part in encoding or decoding."""

PICKLES = (b"PK\x03\x04", b"\x80")
"""What PyTorch's checkpoints begin with: a zip, and before version 1.6 a bare pickle."""

COMPVIS_NAME = re.compile(r"(encoder\.(down|mid)|decoder\.(up|mid))\.")
OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))$")
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Fit:
    """How a file's tensors meet an architecture. ``sources``: diffusers' name -> name in the file."""

    sources: Mapping[str, str]
    missing: Collection[str]
    surplus: Collection[str]
    misshapen: Mapping[str, str]

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.surplus) + len(self.misshapen)

    def complaint(self) -> str:
        shapes = [f"{name}: {shapes}" for name, shapes in self.misshapen.items()]
        parts = (("missing", self.missing), ("surplus", self.surplus), ("of the wrong shape", shapes))
        return "; ".join(f"{count_of(names)} {fault} ({listed(names)})" for fault, names in parts if names)


def sha256_of(path: Path) -> str:
    """sha256 of a file. Raises WeightsError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file or a PyTorch checkpoint, told apart by content, never by the file's name.

    The tensors are views of the file, so that a VAE can be taken out of a large checkpoint without reading the rest.
    Raises WeightsError for anything else, for a damaged file, and for a pickle that wants more than plain tensors.
    """
    start = check_kind(path)
    if start.startswith(PICKLES):
        return _read_pickle(path, is_zip=start.startswith(b"PK"))
    return _read_safetensors(path, int.from_bytes(start[:8], "little"), path.stat().st_size)


def check_kind(path: Path) -> bytes:
    """The first bytes of a file. Raises WeightsError where they are those of neither kind of weights file."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if not start:
        raise WeightsError(f"{path} is empty. Download or copy it again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`")
    is_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER
    if not is_safetensors and not start.startswith(PICKLES):
        raise WeightsError(
            f"{path} is neither safetensors nor a PyTorch checkpoint: it starts with {start[:8]!r}. "
            "Give a .safetensors or .ckpt file, a diffusers folder or a hub repository"
        )
    return start


def _read_safetensors(path: Path, header: int, size: int) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            entries = json.loads(file.read(8 + header)[8:]) if 8 + header <= size else {}
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        expected = 8 + header + max(ends, default=0)
        if size < expected:
            raise WeightsError(
                f"{path} is truncated: it has {size} bytes of at least {expected}. Download or copy it again"
            )
        with safe_open(path, framework="pt") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise WeightsError(f"{path} is a damaged safetensors file: {error}. Download or copy it again") from error


def _read_pickle(path: Path, is_zip: bool) -> dict[str, Tensor]:
    import torch

    # torch.load goes by a path's suffix first, and by the content only of an open file, which it cannot map.
    misnamed = path.name.endswith(".safetensors")
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            # torch warns of TorchScript archives and of odd pickle protocols, both of which it then refuses.
            warnings.simplefilter("ignore")
            source, mmap = (file, False) if misnamed else (path, is_zip)
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        wants = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise WeightsError(
            f"{path} is a pickle that holds more than plain tensors"
            f"{f' (it wants {wants[1]})' if wants else ''}. It is not opened, since that could run its author's code. "
            "Convert it to safetensors where you trust it, and give that file"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")
        raise WeightsError(f"{path} is not a PyTorch checkpoint, or is damaged: {reason}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not tensors by their names (a state_dict)")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise WeightsError(f"{path} holds {count_of(others)} not tensors: {listed(others)}. Give a plain state_dict")
    return {str(name): value for name, value in content.items()}


def select_vae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The VAE's own tensors: those behind a full checkpoint's prefix, if any, without what only training needs."""
    for prefix in VAE_PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            break
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(TRAINING_PREFIXES)}


def fit(tensors: Mapping[str, Tensor], architecture: Architecture) -> Fit:
    """Match a VAE's tensors, under diffusers' or CompVis' names, with what the architecture has."""
    from vaedeploy.autoencoder import tensor_shapes

    expected = tensor_shapes(architecture)
    if any(COMPVIS_NAME.match(name) for name in tensors):
        try:
            sources = _from_compvis(tensors, architecture)
        except KeyError as error:
            # diffusers' conversion takes a resampling bias for granted where there is its weight.
            return Fit(sources={}, missing=[str(error.args[0])], surplus=[], misshapen={})
    else:
        sources = {_modern(name): name for name in tensors}
    used = {sources[name] for name in sources if name in expected}
    shapes = {name: _shape(tensors[sources[name]], expected[name]) for name in expected if name in sources}
    return Fit(
        sources=sources,
        missing=[name for name in expected if name not in sources],
        surplus=[name for name in tensors if name not in used],
        misshapen={
            sources[name]: f"expected {expected[name]}, given {tuple(tensors[sources[name]].shape)}"
            for name, shape in shapes.items()
            if shape != expected[name]
        },
    )


def load(
    tensors: Mapping[str, Tensor], matched: Fit, architecture: Architecture, where: str, progress: Progress = silent
) -> dict[str, Tensor]:
    """float32 copies under diffusers' names and in diffusers' shapes, for a ``Fit`` without faults.

    Raises WeightsError for tensors that are not floating point, or that hold NaN or infinity.
    """
    import torch

    from vaedeploy.autoencoder import tensor_shapes

    expected = tensor_shapes(architecture)
    loaded, integers, broken = {}, [], []
    for done, (name, shape) in enumerate(expected.items()):
        progress("Loading weights", float(done), float(len(expected)))
        tensor = tensors[matched.sources[name]]
        if not tensor.is_floating_point():
            integers.append(f"{matched.sources[name]} {tensor.dtype}")
            continue
        # A copy, since the file under a view may change or go while the model is in use.
        loaded[name] = tensor.reshape(shape).to(torch.float32, copy=True).contiguous()
        # NumPy's runs in this thread; torch's wakes its thread pool for each tensor, which takes longer than the work.
        if not np.isfinite(loaded[name].numpy()).all():
            broken.append(matched.sources[name])
    progress("Loading weights", float(len(expected)), float(len(expected)))
    if integers:
        raise WeightsError(
            f"{where} holds {count_of(integers)} not floating point: {listed(integers)}. "
            "Give weights in float32, float16 or bfloat16; quantised ones cannot be loaded"
        )
    if broken:
        raise WeightsError(
            f"{where} holds {count_of(broken)} with NaN or infinity: {listed(broken)}. "
            "Such a VAE gives black images; get the weights again, or in a higher precision"
        )
    return loaded


def _from_compvis(tensors: Mapping[str, Tensor], architecture: Architecture) -> dict[str, str]:
    """CompVis name of each of diffusers' names, by diffusers' own conversion.

    That conversion drops what it does not know in silence. So it is given stand-ins, each a number spread over its
    tensor's shape: the numbers that come out say which tensors it took, and for what.
    """
    import torch
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    names = list(tensors)
    stand_ins = {n: torch.tensor(float(i)).expand(tensors[n].shape) for i, n in enumerate(names)}
    blocks = {"down_block_types": architecture.down_block_types, "up_block_types": architecture.up_block_types}
    converted = convert_ldm_vae_checkpoint(stand_ins, blocks)  # type: ignore[no-untyped-call]
    return {new: names[int(v[(0,) * v.ndim])] for new, v in converted.items() if v is not None and v.numel()}


def _modern(name: str) -> str:
    """The name that diffusers has now for a tensor, for names of its attention before version 0.14."""
    return OLD_ATTENTION.sub(lambda found: found[1] + NEW_ATTENTION[found[2]] + found[3], name)


def _shape(tensor: Tensor, expected: tuple[int, ...]) -> tuple[int, ...]:
    """The tensor's shape, without sides of 1 at the end: old attentions were 1x1 convolutions, now matrices."""
    shape = tuple(tensor.shape)
    while len(shape) > len(expected) and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def count_of(names: Collection[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''}"


def listed(names: Collection[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    shown = ", ".join(list(names)[:LISTED])
    more = len(names) - LISTED
    return f"{shown} and {more} more" if more > 0 else shown
