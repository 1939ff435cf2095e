"""Weights files: recognised by content, read without running code in them, and reduced to a VAE's tensors."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vaedeploy.errors import WeightsError
from vaedeploy.system.hashing import file_sha256

if TYPE_CHECKING:
    from torch import Tensor


LISTED = 10
"""Number of names that a message lists; it only counts the others."""

MAX_HEADER = 100_000_000
"""Largest header, in bytes, that safetensors itself accepts."""

VAE_PREFIXES = ("first_stage_model.", "vae.")
"""Prefixes of the VAE's tensor names in a full checkpoint: that of CompVis and all that follow it, and that of
repackaged checkpoints.
"""

TRAINING_PREFIXES = ("loss.", "model_ema.")
"""Prefixes of the tensors that CompVis' trainer leaves in a VAE's checkpoint: those of the discriminator and perceptual
loss, and a second, averaged copy of the weights under other names. Neither takes part in encoding or decoding.
"""

PICKLES = (b"PK\x03\x04", b"\x80")
"""First bytes of PyTorch's checkpoints: those of a zip archive, and before version 1.6 those of a bare pickle."""


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hexadecimal. Raises WeightsError where the file cannot be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file or a PyTorch checkpoint, by name.

    The content of the file, never its name, decides which of the two it is. The tensors are views of the mapped file
    where it can be mapped, so that a VAE can be taken out of a large checkpoint without reading the rest. Raises
    WeightsError for any other file, for a damaged file, and for a pickle that needs more than plain tensors.
    """
    start = check_kind(path)
    if start.startswith(PICKLES):
        return _read_pickle(path, is_zip=start.startswith(b"PK"))
    return _read_safetensors(path, int.from_bytes(start[:8], "little"), path.stat().st_size)


def check_kind(path: Path) -> bytes:
    """The first 64 bytes of a weights file. Raises WeightsError where they belong to neither kind of weights file."""
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

    # torch.load trusts the suffix of a path. Of an open file it reads the content, but it cannot map an open file.
    misnamed = path.name.endswith(".safetensors")
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            # torch warns about TorchScript archives and unusual pickle protocols, and then refuses both.
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
    """The tensors of the VAE alone, without those that only training needs.

    In a full checkpoint they are the ones with a prefix, which is removed from their names.
    """
    for prefix in VAE_PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            break
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(TRAINING_PREFIXES)}


def count_of(names: Collection[str]) -> str:
    """The number of ``names``, in words: "1 tensor", "2 tensors"."""
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''}"


def listed(names: Collection[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    shown = ", ".join(list(names)[:LISTED])
    more = len(names) - LISTED
    return f"{shown} and {more} more" if more > 0 else shown
