"""The user's cache directory, for files that vaedeploy can make again."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_cache_path

from vaedeploy.errors import OutputError


def cache_folder(name: str) -> Path:
    """``cache_place``, which is made if it does not exist."""
    folder = cache_place(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_place(name: str) -> Path:
    """The folder ``name`` in vaedeploy's cache, whether it exists or not.

    The cache is in the system's place for users' caches: ``XDG_CACHE_HOME`` or ``~/.cache`` on Linux,
    ``~/Library/Caches`` on macOS and ``LOCALAPPDATA`` on Windows. Raises OutputError for a user without a home, as in
    some containers.
    """
    missing = "there is no home for the cache; set XDG_CACHE_HOME to a folder that may be written"
    try:
        cache = user_cache_path("vaedeploy", appauthor=False)
    except RuntimeError as error:  # newer versions of platformdirs raise it
        raise OutputError(missing) from error
    if not cache.is_absolute():  # ~/.cache, if nothing says what ~ is
        raise OutputError(missing)
    return cache / name
