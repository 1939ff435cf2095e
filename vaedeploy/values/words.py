"""Numbers of things, in words."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """``1 channel``, ``4 channels``. thing: its singular; the plural has an s more."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
