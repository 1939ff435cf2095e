"""A VAE in two files, one for each half, like TAESD's originals: taesd_encoder.safetensors and its decoder.

Both number the layers of a Sequential, so the file's name says which half it is, and a tensor's name does not.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vaedeploy.values.kinds import Part

NAMED = re.compile(r"(.*)(encoder|decoder)(.*)(\.(?:safetensors|pth|pt|ckpt|bin))")

PARTS_NAMED: dict[str, tuple[Part, Part]] = {"encoder": ("encoder", "decoder"), "decoder": ("decoder", "encoder")}
"""How a file's name says its half -> that half, and how the other half's name says it."""


@dataclass(frozen=True)
class Half:
    """A file that is named for one half of a VAE.

    other: the file of the other half, whether it exists or not. name: the VAE's; "" if the file's name has no more.
    """

    part: Part
    other: Path
    name: str


def half_named(file: Path) -> Half | None:
    """What the name of ``file`` says; None where it names no half.

    >>> half_named(Path("taesd_decoder.safetensors"))
    Half(part='decoder', other=PosixPath('taesd_encoder.safetensors'), name='taesd')
    """
    match = NAMED.fullmatch(file.name)
    if match is None:
        return None
    before, half, after, suffix = match.groups()
    part, other = PARTS_NAMED[half]
    return Half(part, file.with_name(before + other + after + suffix), (before.rstrip("_-. ") + after).strip("_-. "))


def holds_half(names: Collection[str]) -> bool:
    """Whether tensors of these ``names`` are those of a Sequential, which TAESD's halves are."""
    return bool(names) and all(re.match(r"\d+\.", name) for name in names)
