"""The user's cache directory, for files that vaedeploy can make again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vaedeploy.errors import OutputError


def cache_folder(name: str) -> Path:
    """``cache_place``, which is made if it does not exist."""
    folder = cache_place(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_place(name: str) -> Path:
    """The folder ``name`` in vaedeploy's cache, whether it exists or not.

    The cache is in ``LOCALAPPDATA`` on Windows, and elsewhere in ``XDG_CACHE_HOME`` or ``~/.cache``. Raises OutputError
    for a user without a home, as containers have them.
    """
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")
    return base / "vaedeploy" / name


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise OutputError(
            "there is no home for the cache; set XDG_CACHE_HOME to a folder that may be written"
        ) from error
