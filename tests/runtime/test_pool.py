"""Things that are lent to threads: who gets which, and how many there are."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from vaedeploy.runtime.pool import Pool

# ---------------------------------------------------------------------------------------------------------------- pool


@dataclass(eq=False)
class Thing:
    key: object = None


def test_who_did_the_same_last_is_lent_again() -> None:
    made: list[Thing] = []

    def make() -> Thing:
        made.append(Thing())
        return made[-1]

    pool = Pool(make, 2)
    with pool.borrow("a") as first:
        first.key = "a"
        with pool.borrow("b") as second:
            second.key = "b"
            assert second is not first
    with pool.borrow("b") as again:
        assert again is second
    with pool.borrow("a") as again:
        assert again is first
    with pool.borrow("c") as again:
        assert again in made
    assert len(made) == 2


def test_the_pool_is_bounded_and_who_comes_later_waits() -> None:
    pool = Pool(Thing, 2)
    inside, most, lock = 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most
        with pool.borrow(None):
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.002)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(40)))
    assert most == 2


def test_what_failed_is_not_lent_again() -> None:
    pool = Pool(Thing, 1)
    with pytest.raises(RuntimeError), pool.borrow(None) as broken:
        raise RuntimeError
    with pool.borrow(None) as next_one:
        assert next_one is not broken
    assert pool.idle() == 1
