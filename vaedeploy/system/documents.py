"""Reading small documents, such as a config, that may be something else: too large, a device, a pipe."""

from __future__ import annotations

import os
from pathlib import Path

from vaedeploy.system.files import handle_bytes, open_regular


def read_document(path: Path, limit: int) -> bytes:
    """The bytes of the file at ``path``, ``limit`` at most.

    Raises OSError, with words that say why, where it cannot be read, is not a regular file, or is larger.
    """
    handle = open_regular(path)
    try:
        data = handle_bytes(handle, limit + 1)
    finally:
        os.close(handle)
    if len(data) > limit:
        raise OSError(f"it has more than {limit:,} bytes")
    return data
