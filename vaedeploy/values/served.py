"""Model names of a VAE's halves on a server. They are part of paths."""

from __future__ import annotations

import re

from vaedeploy.values.kinds import Part

SUFFIXES: dict[Part, str] = {"encoder": "encode", "decoder": "decode"}
"""How the name of a model ends, after the VAE's name and a hyphen."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names of VAEs on a server."""

FINITE = "finite"
"""The output that says whether each item's image is finite: one value per item."""


def model_name(vae: str, part: Part) -> str:
    """The name of a half's model, such as ``mse840k-decode``."""
    return f"{vae}-{SUFFIXES[part]}"
