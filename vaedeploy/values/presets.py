"""The presets' document and names, for packages that must not know how a VAE is loaded.

``source.preset`` reads what a preset is.
"""

from __future__ import annotations

import functools
from importlib import resources


def presets_document() -> str:
    """The text of ``source/presets.toml``."""
    return (resources.files("vaedeploy") / "source" / "presets.toml").read_text(encoding="utf-8")


@functools.cache
def preset_names() -> tuple[str, ...]:
    """The name of every preset, in the order of the document."""
    import tomllib  # takes 4 ms, and the runtime asks for names only where a bundle is missing

    return tuple(tomllib.loads(presets_document())["presets"])
