"""A bounded number of things that one thread at a time may use, made when they are first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar


class Keyed(Protocol):
    """Something that is quickest at doing again what it did last, which ``key`` names."""

    key: Hashable


Item = TypeVar("Item", bound=Keyed)


class Pool(Generic[Item]):
    """At most ``limit`` items. Who finds all of them lent waits.

    make: makes one; what it raises reaches the borrower, and takes no place in the pool.
    """

    def __init__(self, make: Callable[[], Item], limit: int) -> None:
        self._make = make
        self._room = threading.Semaphore(limit)
        self._lock = threading.Lock()
        self._idle: list[Item] = []

    @contextmanager
    def borrow(self, key: Hashable) -> Iterator[Item]:
        """Lend an idle item: one whose last work was ``key``, else the one that was used last, else a new one."""
        with self._room:
            with self._lock:
                same = next((item for item in self._idle if item.key == key), None)
                item = same or (self._idle[-1] if self._idle else None)
                if item is not None:
                    self._idle.remove(item)
            if item is None:
                item = self._make()
            yield item  # an item whose work failed is not put back: what state it is in is not known
            with self._lock:
                self._idle.append(item)

    def idle(self) -> int:
        """How many are there to be lent without being made."""
        return len(self._idle)
