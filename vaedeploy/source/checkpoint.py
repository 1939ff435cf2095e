"""Weights files: recognised by content, read without running code in them, and reduced to a VAE's tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from vaedeploy.errors import WeightsError
from vaedeploy.source.pair import Half, half_named, holds_half
from vaedeploy.source.safetensors_file import is_safetensors, read_safetensors
from vaedeploy.source.stored import Contents, Stored
from vaedeploy.source.torch_file import read_torch_file
from vaedeploy.system.files import special
from vaedeploy.system.hashing import file_sha256
from vaedeploy.system.text import shown
from vaedeploy.values.words import counted

LISTED = 3
"""How many names a message lists; it only counts the others."""

VAE_PREFIXES = ("first_stage_model.", "vae.")
"""Prefixes of the VAE's tensor names in a full checkpoint: CompVis' and its followers', and that of repackaged
checkpoints.
"""

TRAINING_PREFIXES = ("loss.", "model_ema.")
"""Prefixes of the tensors that CompVis' trainer leaves in a VAE's checkpoint: those of the discriminator and perceptual
loss, and a second, averaged copy of the weights under other names. Neither takes part in encoding or decoding.
"""

WRAPPING_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that PyTorch's DistributedDataParallel and torch.compile put before all names of a model."""

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""First bytes of PyTorch's checkpoints: those of a zip archive, and before version 1.6 those of a bare pickle."""

PICTURES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP"}
"""First bytes of pictures, and their format."""


def sha256_of(files: Sequence[Path]) -> str:
    """sha256 of a file, in hexadecimal; for several files, the sha256 of theirs, one per line.

    Raises WeightsError where a file cannot be read.
    """
    hashes = []
    for path in files:
        try:
            hashes.append(file_sha256(path))
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(f"{h}\n" for h in hashes).encode()).hexdigest()


def read_contents(files: Sequence[Path]) -> Contents:
    """Every tensor of safetensors files or PyTorch checkpoints, by name. Several files are parts of one VAE.

    The content of a file, never its name, decides which kind it is. Tensors are read when asked for, so that a VAE can
    be taken out of a large checkpoint without reading the rest. Raises WeightsError for any other file, and for a
    damaged file. No code in a file is run.

    Names in a file with one half of a VAE, see ``pair``, get that half's name in front.
    """
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for path in files:
        contents = _read(path)
        half = half_named(path) if holds_half(contents.tensors) else None
        prefix = "" if half is None else f"{half.part}."
        tensors.update({prefix + name: tensor for name, tensor in contents.tensors.items()})
        metadata.update(contents.metadata)
    return Contents(tensors, metadata)


def lone_half(file: Path) -> Half | None:
    """The half that ``file`` holds, where it holds no whole VAE. Raises WeightsError as ``read_contents`` does."""
    half = half_named(file)
    return half if half is not None and holds_half(_read(file).tensors) else None


def _read(path: Path) -> Contents:
    start = check_kind(path)
    return read_safetensors(path) if is_safetensors(start) else read_torch_file(path, is_zip=start.startswith(ZIP))


def check_kind(path: Path) -> bytes:
    """The first 64 bytes of a weights file. Raises WeightsError where they belong to neither kind of weights file."""
    try:
        if fault := special(path):
            raise WeightsError(f"{path} {fault}; give a weights file")
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if not start:
        raise WeightsError(f"{path} is empty. Download or copy it again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`")
    if not is_safetensors(start) and not start.startswith((ZIP, PICKLE)):
        picture = next((kind for begin, kind in PICTURES.items() if start.startswith(begin)), None)
        what = f"is a picture ({picture})" if picture else f"starts with {start[:8]!r}"
        raise WeightsError(
            f"{path} is neither safetensors nor a PyTorch checkpoint: it {what}. "
            "Give a .safetensors or .ckpt file, a diffusers folder or a hub repository"
        )
    return start


def select_vae(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of the VAE only, without those that only training needs.

    In a full checkpoint these have a prefix, which is removed from their names.
    """
    while wrapping := [p for p in WRAPPING_PREFIXES if tensors and all(name.startswith(p) for name in tensors)]:
        tensors = {name.removeprefix(wrapping[0]): tensor for name, tensor in tensors.items()}
    for prefix in VAE_PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            break
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(TRAINING_PREFIXES)}


def count_of(names: Collection[str]) -> str:
    """The number of ``names``, in words: "1 tensor", "2 tensors"."""
    return counted(len(names), "tensor")


def listed(names: Collection[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    first = ", ".join(shown(name) for name in list(names)[:LISTED])
    more = len(names) - LISTED
    return f"{first} and {more} more" if more > 0 else first
