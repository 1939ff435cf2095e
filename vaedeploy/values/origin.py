"""Where a VAE's weights came from."""

from __future__ import annotations

from typing import Literal

import msgspec


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a VAE's weights came from, in enough detail to find them again.

    kind: where they are, such as "package" (carried by vaedeploy), "random" (seeded weights) or "modules" (the user's).
    location: a preset's name, a hub repository, an absolute path, ``random:SEED``, or "" for the user's modules.
    sha256: sha256 of the weights file as it was read; None if there was no file.
    preset: the preset whose architecture and latent contract were used, if any.
    revision: the commit in the hub, if known.
    """

    kind: Literal["package", "hub", "folder", "file", "random", "modules"]
    location: str
    sha256: str | None
    preset: str | None
    revision: str | None = None
