"""Signals that ask a command to stop: Ctrl-C, and what systems send before they kill.

Python raises them as exceptions in whatever runs at that moment. One that is raised in a destructor or in a callback of
a library is lost: Python prints that it ignores it, and the command goes on. So they are remembered, and whatever is
about to replace something asks.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([] if sys.platform == "win32" else [signal.SIGHUP]))
"""SIGTERM comes from `kill`, from containers and from the system when it shuts down, SIGHUP from a closed terminal."""

_received: list[int] = []


class Stopped(KeyboardInterrupt):
    """A signal of ``SIGNALS`` arrived. number: the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def remembering() -> Iterator[None]:
    """Context in which each of ``SIGNALS`` raises ``Stopped`` in the main thread, and is remembered.

    A signal that this process ignores stays ignored. Only the main thread can do this; in another, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _received.clear()
    for number, handler in before.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not set from Python, and cannot be
                signal.signal(number, handler)
        _received.clear()


def _stop(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise Stopped(number)


def stop_if_interrupted() -> None:
    """Raise ``Stopped`` if a signal arrived, though its exception may have been lost."""
    if _received:
        raise Stopped(_received[0])
