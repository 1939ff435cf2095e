"""The weights in a diffusers folder, under every name that diffusers gives them: variants, and files in parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source.pair import half_named
from vaedeploy.system.documents import read_document
from vaedeploy.system.text import shown

STEM = "diffusion_pytorch_model"

SINGLE = re.compile(rf"{STEM}(?:\.(?P<variant>\w+))?\.(?P<kind>safetensors|bin)")

INDEX = re.compile(rf"{STEM}\.(?P<kind>safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json")
"""The name of the list of a file's parts. diffusers puts the variant at its end, and into the names of the parts."""

HALF = ("fp16", "bf16")
"""Variants with fewer digits than others, the most precise first."""

WEIGHTS = tuple(
    f"{STEM}{ending}"
    for variant in ("", *(f".{half}" for half in HALF))
    for kind in ("safetensors", "bin")
    for ending in (f"{variant}.{kind}", f".{kind}.index{variant}.json")
)
"""Names that weights may have in a folder that cannot be listed, the most precise first."""

MAX_INDEX = 25_000_000
"""Largest list of parts that is read, in bytes."""


@dataclass(frozen=True)
class _Candidate:
    """Weights that a folder may hold. variant: "" for none."""

    path: Path
    variant: str
    is_bin: bool
    is_index: bool

    @property
    def rank(self) -> tuple[int, bool, bool]:
        """The smaller, the better: full precision, then safetensors, then a file in one part."""
        digits = 2 + HALF.index(self.variant) if self.variant in HALF else min(len(self.variant), 1)
        return digits, self.is_bin, self.is_index


class _Index(msgspec.Struct):
    """What a list of parts says: name of a tensor -> file."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Weights:
    """The weights in a folder.

    where: what messages call them. files: the weights file, or its parts. in_halves: whether these are an encoder and a
    decoder, see ``pair``.
    """

    where: Path
    files: tuple[Path, ...]
    in_halves: bool = False


def find_weights(folder: Path) -> Weights:
    """The weights in a folder, the most precise if there are several variants.

    Raises WeightsError where the folder has no weights, where a part or a link's target is missing, and where two
    variants are equally precise.
    """
    names = _names(folder)
    candidates = _candidates(folder, names)
    if not candidates:
        return _halves(folder, names)
    best = candidates[0]
    equal = [c.path for c in candidates if c.rank[0] == best.rank[0] and c.variant != best.variant]
    if equal:
        raise WeightsError(
            f"{folder} holds several variants of the weights: {', '.join(p.name for p in (best.path, *equal))}. "
            "Give the file of the one that you mean"
        )
    files = parts_of(best.path)
    for file in files:
        if not file.exists():
            raise WeightsError(
                f"{file} is a link to {file.readlink()}, which is not there. Download the repository again"
                if file.is_symlink()
                else f"{file}, a part of the weights that {best.path.name} lists, is not there. "
                "Download the repository again"
            )
    return Weights(best.path, files)


def _halves(folder: Path, names: Sequence[str]) -> Weights:
    """The encoder and the decoder in a folder that has one file for each, and no others."""
    halves = [(path, half.other) for name in names if (half := half_named(path := folder / name)) is not None]
    pairs = [pair for pair in halves if pair[1].name in names and pair[0] < pair[1]]
    if len(pairs) == 1:
        return Weights(folder, pairs[0], in_halves=True)
    if pairs:
        named = ", ".join(path.name for pair in pairs for path in pair)
        raise WeightsError(
            f"{folder} holds several VAEs in two files each: {named}. Give either file of the VAE that you mean"
        )
    alone = "".join(f"; of {path.name} the other half, {other.name}, is not there" for path, other in halves[:1])
    raise WeightsError(
        f"{folder} holds no {STEM}.safetensors or {STEM}.bin{alone}. Give a diffusers folder, or the weights file "
        "itself"
    )


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise WeightsError(f"{folder} cannot be read: {error.strerror or error}") from error


def _candidates(folder: Path, names: Sequence[str]) -> list[_Candidate]:
    found = []
    for name in names:
        match = SINGLE.fullmatch(name) or INDEX.fullmatch(name)
        if match is not None:
            is_bin, is_index = match["kind"] == "bin", match.re is INDEX
            found.append(_Candidate(folder / name, match["variant"] or "", is_bin, is_index))
    return sorted(found, key=lambda candidate: candidate.rank)


def parts_of(file: Path) -> tuple[Path, ...]:
    """The weights files that ``file`` stands for: itself, or those that it lists, whether they are there or not.

    Raises WeightsError for a list that cannot be read, and for one that names files elsewhere.
    """
    return _listed(file) if INDEX.fullmatch(file.name) else (file,)


def _listed(index: Path) -> tuple[Path, ...]:
    try:
        names = set(msgspec.json.decode(read_document(index, MAX_INDEX), type=_Index).weight_map.values())
    except OSError as error:
        raise WeightsError(f"{index} cannot be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WeightsError(f"{index} does not list the parts of weights: {error}") from error
    # Nearly everywhere, a file's name has at most 255 bytes.
    outside = sorted(name for name in names if not re.fullmatch(r"[\w-][\w.-]{0,254}", name, re.ASCII))
    if outside or not names:
        raise WeightsError(
            f"{index} names {shown(repr(outside[0]))} as a part of the weights, which is not a file beside it; "
            "it is refused"
            if outside
            else f"{index} lists no parts of weights"
        )
    return tuple(index.with_name(name) for name in sorted(names))
