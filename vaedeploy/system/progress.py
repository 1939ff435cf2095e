"""How long work tells what it is doing: a plain callable, so that no stage knows of terminals."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, float], None]
"""Called with (what is being done, done so far, total): at the start, on each advance, and when done == total. The
numbers are in no unit. It is called from the thread that does the work, which waits for it.
"""


def silent(what: str, done: float, total: float) -> None:
    """Tell nobody."""
