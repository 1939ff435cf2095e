"""Weights -> ``Reference``: presets, the hub, folders, files and seeds, loaded as two PyTorch modules.

May import ``values``, ``system`` and ``errors``; one package a family of VAEs holds what only that family has.
"""

from __future__ import annotations

from vaedeploy.source.load import load_reference, load_source, reload_reference
from vaedeploy.source.locate import Source, find_source
from vaedeploy.source.preset import Preset, get_preset, presets

__all__ = [
    "Preset",
    "Source",
    "find_source",
    "get_preset",
    "load_reference",
    "load_source",
    "presets",
    "reload_reference",
]
