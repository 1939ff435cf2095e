"""Progress of long work, reported to a plain callable, so that no stage needs to know about terminals."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, float], None]
"""A callable that receives (what is being done, amount done, total amount).

It is called at the start, at each advance, and when the amount done equals the total. The amounts have no unit. The
calls come from the thread that does the work, which waits for them to return.
"""


def silent(what: str, done: float, total: float) -> None:
    """A ``Progress`` that does nothing."""
