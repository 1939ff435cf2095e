"""The user's cache directory, for files that vaedeploy can make again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder(name: str) -> Path:
    """``cache_place``, which is made if it does not exist."""
    folder = cache_place(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_place(name: str) -> Path:
    """The folder ``name`` in vaedeploy's cache, whether it exists or not.

    The cache is in ``LOCALAPPDATA`` on Windows, and elsewhere in ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "vaedeploy" / name
