"""Progress of long work, reported to a plain callable, so that no stage needs to know about terminals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float, float], None]
"""A callable that receives (what is being done, amount done, total amount).

It is called at the start, at each advance, and when the amount done equals the total, which is infinite where nothing
tells how far a step is. The amounts have no unit. The calls come from the thread that does the work, which waits for
them to return.
"""

UNMEASURED = math.inf
"""The total of a step of which nothing tells how far it is: see ``unmeasured``."""


@contextmanager
def unmeasured(progress: Progress, what: str) -> Iterator[None]:
    """Context of a step without a measure within another one. It is for whoever watches: a terminal shows it while it
    lasts, and a log does not have it.
    """
    progress(what, 0, UNMEASURED)
    try:
        yield
    finally:
        progress(what, UNMEASURED, UNMEASURED)


def silent(what: str, done: float, total: float) -> None:
    """A ``Progress`` that does nothing."""
