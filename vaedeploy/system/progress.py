"""Progress of long work, reported to a plain callable, so that no stage needs to know about terminals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float, float], None]
"""A callable that receives (what is being done, amount done, total amount).

It is called at the start, at each advance, and when the amount done equals the total, which is infinite for a step that
cannot be measured. The amounts have no unit. The thread that does the work makes the calls, and waits for them to
return.
"""

UNMEASURED = math.inf
"""The total of a step that cannot be measured: see ``unmeasured``."""


@contextmanager
def unmeasured(progress: Progress, what: str) -> Iterator[None]:
    """Context of an unmeasured step within another step. A terminal shows it while it lasts; a log leaves it out."""
    progress(what, 0, UNMEASURED)
    try:
        yield
    finally:
        progress(what, UNMEASURED, UNMEASURED)


def silent(what: str, done: float, total: float) -> None:
    """A ``Progress`` that does nothing."""
