"""What the halves of a VAE are called on a server: names of models, which are part of paths."""

from __future__ import annotations

import re

from vaedeploy.values.kinds import Part

SUFFIXES: dict[Part, str] = {"encoder": "encode", "decoder": "decode"}
"""What the name of a model ends in, after the VAE's and a hyphen."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names of VAEs on a server."""

FINITE = "finite"
"""The output that says of each item whether its image is finite: one value an item."""


def model_name(vae: str, part: Part) -> str:
    """The name of a half's model, such as ``mse840k-decode``."""
    return f"{vae}-{SUFFIXES[part]}"
