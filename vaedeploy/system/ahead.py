"""Work that threads do ahead of the one that takes its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def done_ahead(
    work: Callable[[Task], Result], tasks: Iterable[Task], threads: int, weight: Callable[[Task], int], most: int
) -> Generator[tuple[Task, Future[Result]], None, None]:
    """Each task, in order, with the future of what ``work`` makes of it. Its error is raised where it is asked for.

    While the caller is at one task, ``threads`` threads work on those that follow: on ``threads`` + 1 at most, so that
    one more is at hand, and on so few that their weights, with that of the one which is given next, are ``most``
    together. A task that is heavier is begun where no other is. To stop early, close this: it ends once the tasks that
    threads are at have ended, and leaves no thread.
    """
    left = deque(tasks)
    begun: deque[tuple[Task, Future[Result]]] = deque()
    held = 0
    with ThreadPoolExecutor(threads, "ahead") as pool:
        try:
            while left or begun:
                while left and (not begun or (len(begun) < threads + 2 and held + weight(left[0]) <= most)):
                    held += weight(left[0])
                    begun.append((left[0], pool.submit(work, left.popleft())))
                task, result = begun.popleft()
                held -= weight(task)
                yield task, result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
