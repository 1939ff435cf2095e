"""Errors of the operating system in words: why something failed, and what the user can do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from vaedeploy.errors import OutputError


def reason(error: OSError) -> str:
    """The operating system's words for ``error``, without its number and the name of a temporary file."""
    if isinstance(error, FileExistsError):
        return "a file is where a folder is needed"
    return error.strerror or str(error)


def advice(error: OSError) -> str:
    """What the user can do about ``error``, as a sentence without its full stop."""
    if isinstance(error, FileNotFoundError):
        return "Make its folder first, or choose another place"
    short = shortage(error)
    return f"{short[1]}, or choose another place" if short else "Choose another place"


@contextmanager
def told_as(problem: str) -> Iterator[None]:
    """Context in which an OSError becomes an OutputError: ``problem``, the reason, and what the user can do."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{problem}: {reason(error)}. {advice(error)}") from error


NO_ROOM = ("no room is left there", "Free space there")
"""What ``shortage`` gives for a full disk and for an exceeded quota."""

SHORTAGES = {
    errno.ENOSPC: NO_ROOM,
    getattr(errno, "EDQUOT", errno.ENOSPC): NO_ROOM,
    errno.EFBIG: ("a file there may not become that large", "Raise the limit (ulimit -f, or the file system's own)"),
}
"""Error number -> (what is short, what the user can do)."""


def shortage(error: BaseException | None) -> tuple[str, str] | None:
    """(what is short, what the user can do) if a full disk, a quota or a limit on a file's size caused ``error``.

    The causes and contexts of ``error`` are searched as well. None if nothing is short.
    """
    while error is not None:
        for number, words in SHORTAGES.items():
            # safetensors is written in Rust: its errors have no errno, only the number in their text.
            if getattr(error, "errno", None) == number or f"(os error {number})" in str(error):
                return words
        error = error.__cause__ or error.__context__
    return None
