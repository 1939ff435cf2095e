"""Weights -> ``Reference``: a VAE from a preset, the hub, a folder, a file or a seed, loaded as two PyTorch modules.

    >>> reference = load_reference("mse840k")

May import ``values``, ``system`` and ``errors``. What only one family of VAEs needs is in a package of its own.
"""

from __future__ import annotations

from vaedeploy.source.load import load_reference, load_source, reload_reference
from vaedeploy.source.locate import Source, find_source, known_name
from vaedeploy.source.preset import Preset, get_preset, presets

__all__ = [
    "Preset",
    "Source",
    "find_source",
    "get_preset",
    "known_name",
    "load_reference",
    "load_source",
    "presets",
    "reload_reference",
]
