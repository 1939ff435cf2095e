"""Work done ahead by threads: its order, how much of it, and its end."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from vaedeploy.system.ahead import done_ahead

PATIENCE = 60


def one(task: int) -> int:
    return 1


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

    with closing(done_ahead(work, range(10), 2, one, 10)) as results:
        assert [(task, result.result()) for task, result in results] == [(task, task * task) for task in range(10)]


def test_all_threads_work_at_once() -> None:
    together = threading.Barrier(4)
    with closing(done_ahead(lambda task: together.wait(PATIENCE), range(8), 4, one, 10)) as results:
        assert sorted(result.result() for _, result in results) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("threads", "most", "ahead"), [(1, 100, 2), (3, 100, 4), (3, 3, 2), (3, 1, 0)])
def test_no_more_is_begun_than_may_be_held(threads: int, most: int, ahead: int) -> None:
    """Beside the task that the caller is at. Another is begun only when the next one is asked for."""
    done: list[int] = []
    with closing(done_ahead(done.append, range(20), threads, one, most)) as results:
        for task, _ in results:
            wait_for(done, min(20, task + 1 + ahead))
            time.sleep(0.01)  # in which any others would be done
            assert len(done) == min(20, task + 1 + ahead)


def test_a_task_that_is_too_heavy_is_done_alone() -> None:
    done: list[int] = []
    with closing(done_ahead(done.append, [1, 9, 1, 1], 3, lambda task: task, 5)) as results:
        counts = []
        for _ in results:
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
    with closing(done_ahead(work, range(5), 2, one, 10)) as results:
        for _, result in results:
            try:
                told.append(result.result())
            except ValueError as error:
                told.append(str(error))
    assert told == [0, 1, "two", 3, 4]


def test_an_early_end_leaves_no_thread_and_begins_nothing_more() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def work(task: int) -> None:
        begun.append(task)
        assert task == 0 or go_on.wait(PATIENCE)

    with closing(done_ahead(work, range(20), 2, one, 100)) as results:
        _, first = next(results)
        first.result()
        wait_for(begun, 3)
        threading.Timer(0.05, go_on.set).start()  # while ``closing`` waits for the threads to end
    assert begun == [0, 1, 2]
    assert threads_alive() == []
