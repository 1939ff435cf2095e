"""Work that threads do ahead of the thread that takes its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Ahead(Generic[Task, Result]):
    """Tasks that are taken one by one, in the order in which they were added, each with the result of ``work``.

        >>> with Ahead(read, threads=2, weight=len, most=1000) as ahead:
        ...     ahead.add(["a.jpg", "b.jpg"])
        ...     pixels = ahead.take().result()

    While the caller is at one task, ``threads`` threads work on the following ones: at most ``threads`` + 1 of them, so
    that one more is at hand, and only as many as weigh ``most`` together with the one that is taken next. A heavier
    task is begun when no other is. The end of the context waits for the tasks in progress; it leaves no thread.
    """

    def __init__(self, work: Callable[[Task], Result], threads: int, weight: Callable[[Task], int], most: int) -> None:
        self._work, self._threads, self._weight, self._most = work, threads, weight, most
        self._left: deque[Task] = deque()
        self._begun: deque[tuple[Task, Future[Result]]] = deque()
        self._held = 0
        self._pool = ThreadPoolExecutor(threads, "ahead")

    def add(self, tasks: Iterable[Task]) -> None:
        """Append tasks. The next ``take`` begins them, as far as there is room."""
        self._left += tasks

    def take(self) -> Future[Result]:
        """The future of the first task that was not taken yet; its ``result`` raises the task's error."""
        while self._left and self._has_room(self._weight(self._left[0])):
            self._held += self._weight(self._left[0])
            self._begun.append((self._left[0], self._pool.submit(self._work, self._left.popleft())))
        task, result = self._begun.popleft()
        self._held -= self._weight(task)
        return result

    def _has_room(self, weight: int) -> bool:
        return not self._begun or (len(self._begun) < self._threads + 2 and self._held + weight <= self._most)

    def clear(self) -> None:
        """Wait for the tasks in progress, and drop all that were not taken."""
        self._left.clear()
        wait([result for _, result in self._begun if not result.cancel()])
        self._begun.clear()
        self._held = 0

    def __enter__(self) -> Ahead[Task, Result]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
