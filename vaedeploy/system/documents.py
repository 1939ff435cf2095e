"""Reading small documents, such as a config, that may be anything else: too large, a device, a pipe."""

from __future__ import annotations

import stat
from pathlib import Path


def read_document(path: Path, limit: int) -> bytes:
    """The bytes of the file at ``path``, ``limit`` at most.

    Raises OSError, with words that say why, where it cannot be read, is no file, or is larger.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a pipe would wait for a writer
        raise OSError("it is not a file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(f"it has more than {limit} bytes")
    return data
