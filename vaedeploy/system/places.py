"""What is at a path, for paths that callers give.

pathlib raises an error where the system refuses to look: in a folder that may not be entered, at a name that is too
long, and at a symbolic link that leads to itself. Here nothing is there then, and whatever opens the path says why.
"""

from __future__ import annotations

import os
from pathlib import Path


def exists(path: str | Path) -> bool:
    """Whether there is something at ``path``."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file at ``path``."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder at ``path``."""
    return os.path.isdir(path)  # noqa: PTH112


def is_vacant(path: str | Path) -> bool:
    """Whether there is nothing at ``path``, or an empty folder."""
    return not exists(path) or (is_folder(path) and not any(Path(path).iterdir()))


def resolved(path: str | Path) -> Path:
    """``path``, absolute and without symbolic links, as far as they lead somewhere."""
    return Path(os.path.realpath(path))
