"""Where a VAE's weights came from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

WEIGHTS_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""The ends of weights files' names."""


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a VAE's weights came from, in enough detail to find them again.

    kind: where they are, such as "package" (carried by vaedeploy), "random" (seeded weights) or "modules" (the user's).
    location: a preset's name, a hub repository, an absolute path (or the last of its names, see ``private``),
        ``random:SEED``, or "" for the user's modules.
    sha256: sha256 of the weights file as it was read; None if there was no file.
    preset: the preset whose architecture and latent contract were used, if any.
    revision: the commit in the hub, if known.
    subfolder: the folder of the VAE in a hub repository or a diffusers folder, if the caller named it.
    config: the folder whose config.json gave the architecture, if it is not the weights' own (as an absolute path, or
        the last of its names, see ``private``).
    """

    kind: Literal["package", "hub", "folder", "file", "random", "modules"]
    location: str
    sha256: str | None
    preset: str | None
    revision: str | None = None
    subfolder: str | None = None
    config: str | None = None

    @property
    def is_private(self) -> bool:
        """Whether it is a file or folder, with only the last name kept."""
        return self.kind in ("file", "folder") and not Path(self.location).is_absolute()

    def private(self) -> Origin:
        """The same without the folders that lead to a file or folder: they may have people's names."""
        if self.kind not in ("file", "folder"):
            return self
        config = None if self.config is None else Path(self.config).name
        return msgspec.structs.replace(self, location=Path(self.location).name, config=config)
