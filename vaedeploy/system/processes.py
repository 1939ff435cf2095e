"""Protects libraries that have threads from a fork and from the end of the process.

ONNX Runtime, TensorRT and CUDA keep threads, and memory of a GPU, behind their objects. A forked process has copies of
the objects and none of the threads: destroying a copy hangs or crashes. And when Python ends while a daemon thread is
inside such a library, that thread is unwound through C++ code that does not allow it, which aborts the process.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar
from weakref import WeakSet

from vaedeploy.system.interrupts import stop_if_interrupted


class Forking(Protocol):
    """Something that must know that it is now in a forked process."""

    def forked(self) -> None:
        """Called in the new process before anything else runs there: make new locks, since a thread that held one is
        not here.
        """
        ...


T = TypeVar("T")

_kept: WeakSet[object] = WeakSet()
_told: WeakSet[Forking] = WeakSet()

_change = threading.Condition()
_calling: list[int] = []
"""The thread of each call in progress."""

_ending = False


def never_destroyed_in_child(thing: T) -> T:
    """``thing``, which is never destroyed in a process forked from this one, even if dropped there."""
    _kept.add(thing)
    return thing


def tell_of_fork(thing: Forking) -> None:
    """Call ``thing.forked()`` in every process that is forked from this one while ``thing`` is in use."""
    _told.add(thing)


@contextmanager
def native_call() -> Iterator[None]:
    """Context of a call into such a library. The end of the process waits for calls in progress; a daemon thread that
    comes later waits here, and ends without harm.

    No call begins once a signal has asked a command to stop: ``Stopped`` is raised.
    """
    stop_if_interrupted()
    thread = threading.get_ident()
    with _change:
        while _ending and threading.current_thread().daemon:
            _change.wait()
        _calling.append(thread)
    try:
        yield
    finally:
        with _change:
            _calling.remove(thread)
            _change.notify_all()


@atexit.register
def _wait_for_calls() -> None:
    global _ending
    # This thread is in no call, but a signal at the beginning of one may have left it in the list.
    ours = threading.get_ident()
    with _change:
        _ending = True
        _change.wait_for(lambda: all(thread == ours for thread in _calling))


def _forked() -> None:
    global _change
    _change = threading.Condition()
    _calling.clear()
    for kept in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))  # a reference that is never released
    for told in list(_told):
        told.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
