"""Folders that are mount points: a volume of a container, a disk. No system renames them."""

from __future__ import annotations

import os
import re
from pathlib import Path

TABLE = Path("/proc/self/mountinfo")
"""Linux: what is mounted where. Its fifth field is the mount point."""


def is_mount(place: Path) -> bool:
    """Whether something is mounted at ``place``, a resolved path, even a folder of the same disk."""
    if os.path.ismount(place):  # Path.is_mount raises for what cannot be read
        return True
    try:
        lines = os.fsdecode(TABLE.read_bytes()).splitlines()
    except OSError:
        return False
    points = (line.split(" ")[4] for line in lines if line.count(" ") >= 4)
    # A space or a line break in a path is written as a backslash and three octal digits.
    return str(place) in (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), point) for point in points)
