"""Work done ahead by threads: its order, how much of it, and its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import pytest

from vaedeploy.system.ahead import Ahead

PATIENCE = 60


def one(task: int) -> int:
    return 1


def ahead_of(
    work: Callable[[int], object], tasks: Iterable[int], threads: int, most: int, weight: Callable[[int], int] = one
) -> Ahead[int, object]:
    ahead = Ahead(work, threads, weight, most)
    ahead.add(tasks)
    return ahead


def threads_alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def wait_for(done: list[int], count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(done) < count:
        assert time.monotonic() < deadline, done
        time.sleep(0.001)


def test_results_come_in_the_order_of_tasks_though_they_are_done_in_another() -> None:
    """Each even task waits until the one behind it is done."""
    done = [threading.Event() for _ in range(10)]

    def work(task: int) -> int:
        if task % 2 == 0:
            assert done[task + 1].wait(PATIENCE)
        done[task].set()
        return task * task

    with ahead_of(work, range(10), 2, 10) as ahead:
        assert [ahead.take().result() for _ in range(10)] == [task * task for task in range(10)]


def test_all_threads_work_at_once() -> None:
    together = threading.Barrier(4)
    with ahead_of(lambda task: together.wait(PATIENCE), range(8), 4, 10) as ahead:
        assert sorted(ahead.take().result() for _ in range(8)) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("threads", "most", "more"), [(1, 100, 2), (3, 100, 4), (3, 3, 2), (3, 1, 0)])
def test_no_more_is_begun_than_may_be_held(threads: int, most: int, more: int) -> None:
    """Beside the task that the caller is at. Another is begun only when the next one is asked for."""
    done: list[int] = []
    with ahead_of(done.append, range(12), threads, most) as ahead:
        for task in range(20):
            if task == 2:
                ahead.add(range(12, 20))  # they are begun as if they had been there from the beginning
            ahead.take()
            wait_for(done, min(20, task + 1 + more))
            time.sleep(0.01)  # in which any others would be done
            assert len(done) == min(20, task + 1 + more)


def test_a_task_that_is_too_heavy_is_done_alone() -> None:
    done: list[int] = []
    with ahead_of(done.append, [1, 9, 1, 1], 3, 5, lambda task: task) as ahead:
        counts = []
        for _ in range(4):
            ahead.take()
            time.sleep(0.01)
            counts.append(len(done))
    assert done[1] == 9
    assert counts == [1, 2, 4, 4]


def test_an_error_is_that_of_its_task_alone() -> None:
    def work(task: int) -> int:
        if task == 2:
            raise ValueError("two")
        return task

    told: list[object] = []
    with ahead_of(work, range(5), 2, 10) as ahead:
        for _ in range(5):
            try:
                told.append(ahead.take().result())
            except ValueError as error:
                told.append(str(error))
    assert told == [0, 1, "two", 3, 4]


def test_an_early_end_leaves_no_thread_and_begins_nothing_more() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def work(task: int) -> None:
        begun.append(task)
        assert task == 0 or go_on.wait(PATIENCE)

    with ahead_of(work, range(20), 2, 100) as ahead:
        ahead.take().result()
        wait_for(begun, 3)
        threading.Timer(0.05, go_on.set).start()  # while the end of the context waits for the threads to end
    assert begun == [0, 1, 2]
    assert threads_alive() == []


def test_tasks_that_are_dropped_leave_their_room_to_others() -> None:
    """Those that threads are at are ended first, and no other is begun."""
    begun: list[int] = []
    go_on = threading.Event()

    def work(task: int) -> int:
        begun.append(task)
        assert task not in (1, 2) or go_on.wait(PATIENCE)
        return task

    with ahead_of(work, range(10), 2, 4) as ahead:
        ahead.take()
        wait_for(begun, 3)
        threading.Timer(0.05, go_on.set).start()  # while ``clear`` waits
        ahead.clear()
        assert go_on.is_set()
        ahead.add(range(20, 24))
        assert ahead.take().result() == 20
        wait_for(begun, 7)
    assert sorted(begun) == [0, 1, 2, 20, 21, 22, 23]
