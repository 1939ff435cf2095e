"""A pool of a limited number of items, each made when first needed and used by one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar


class Keyed(Protocol):
    """An item that repeats its last work faster than it does other work. ``key`` identifies its last work."""

    key: Hashable


Item = TypeVar("Item", bound=Keyed)


class Pool(Generic[Item]):
    """Lends at most ``limit`` items at a time. A borrower waits while all of them are lent.

    make: makes an item. An exception that it raises reaches the borrower, and takes no place in the pool.
    """

    def __init__(self, make: Callable[[], Item], limit: int) -> None:
        self._make = make
        self._room = threading.Semaphore(limit)
        self._lock = threading.Lock()
        self._idle: list[Item] = []

    @contextmanager
    def borrow(self, key: Hashable) -> Iterator[Item]:
        """Lend an item: an idle one whose last work was ``key``, else the idle one used last, else a new one."""
        with self._room:
            with self._lock:
                matching = next((item for item in self._idle if item.key == key), None)
                item = matching or (self._idle[-1] if self._idle else None)
                if item is not None:
                    self._idle.remove(item)
            if item is None:
                item = self._make()
            yield item  # if the work fails, the item is not put back, since its state is unknown
            with self._lock:
                self._idle.append(item)

    def idle(self) -> int:
        """How many items can be lent without making one."""
        return len(self._idle)
