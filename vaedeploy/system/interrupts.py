"""Signals that ask a command to stop: Ctrl-C, and what systems send before they kill.

Python raises them as exceptions in whatever runs at that moment. One that is raised in a destructor or in a library's
callback is lost: Python prints that it ignores it, and the command goes on. So signals are remembered, and checked
between the steps of long work: where it reports progress, before each graph runs or is rewritten, and before anything
is replaced.

A library call of minutes returns to Python only at its end, so calls that can be ended from another thread are, see
``ending_early``.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([] if sys.platform == "win32" else [signal.SIGHUP]))
"""SIGTERM comes from `kill`, from containers and from the system when it shuts down, SIGHUP from a closed terminal."""

SIGNALLED = 128
"""Added to a signal's number, this is the exit code after it, by the convention of shells: 130 after Ctrl-C."""

_received: list[int] = []

_running: list[Callable[[], None]] = []
"""The functions that end the calls in progress."""


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
    heard = [number for number, handler in before.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]
    _received.clear()
    for number in heard:
        signal.signal(number, _stop)
    try:
        with _watching(heard):
            yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not set from Python, and cannot be restored
                signal.signal(number, handler)
        _received.clear()


@contextmanager
def ending_early(end: Callable[[], None]) -> Iterator[None]:
    """Context of a long call: ``end`` is called, in another thread, once a signal has asked a command to stop."""
    _running.append(end)
    try:
        yield
    finally:
        _running.remove(end)


def end_calls() -> None:
    """End the calls that are in progress, see ``ending_early``."""
    for end in _running.copy():
        end()


@contextmanager
def _watching(numbers: Collection[int]) -> Iterator[None]:
    """Context in which a thread ends the calls in progress when one of these signals arrives."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while arrived := reader.recv(64):
            # A program that handles the signal itself, like a server, decides what becomes of its calls.
            if any(number in numbers and signal.getsignal(number) == _stop for number in arrived):
                end_calls()

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    with reader:
        thread.start()
        try:
            with writer:
                # The C-level handler writes each signal's number at once; Python's handler waits for the main thread.
                before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
                try:
                    yield
                finally:
                    signal.set_wakeup_fd(before)
        finally:
            thread.join()  # before its socket is closed, also if an error ends the context


def _stop(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise Stopped(number)


def stop_if_interrupted() -> None:
    """Raise ``Stopped`` if a signal arrived, even if its exception was lost."""
    if _received:
        raise Stopped(_received[0])
