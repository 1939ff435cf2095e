"""What the operating system said, and what helps, in words."""

from __future__ import annotations

import errno


def reason(error: OSError) -> str:
    """What the operating system said, without the number and the temporary name."""
    if isinstance(error, FileExistsError):
        return "there is a file where a folder has to be"
    return error.strerror or str(error)


def advice(error: OSError) -> str:
    """What helps against ``error``."""
    if isinstance(error, FileNotFoundError):
        return "Make its folder first, or choose another place"
    short = shortage(error)
    return f"{short[1]}, or choose another place" if short else "Choose another place"


NO_ROOM = ("no room is left there", "Free space there")

SHORTAGES = {
    errno.ENOSPC: NO_ROOM,
    getattr(errno, "EDQUOT", errno.ENOSPC): NO_ROOM,
    errno.EFBIG: ("a file there may not become that large", "Raise the limit (ulimit -f, or the file system's own)"),
}


def shortage(error: BaseException | None) -> tuple[str, str] | None:
    """(what is short, what helps) where ``error``, or what led to it, is a disk without room, a quota or a limit on a
    file's size.
    """
    while error is not None:
        for number, told in SHORTAGES.items():
            # safetensors, being Rust, tells the number in words only.
            if getattr(error, "errno", None) == number or f"(os error {number})" in str(error):
                return told
        error = error.__cause__ or error.__context__
    return None
