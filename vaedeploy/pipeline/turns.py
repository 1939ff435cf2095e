"""Timing several calls in turns, so that whatever disturbs one of them disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from vaedeploy.errors import BackendError, EngineError, SizeError

K = TypeVar("K", bound=Hashable)

WARM = 2
"""How many calls run before any is timed: kernels are compiled and CUDA graphs recorded in them."""

SHORTEST = 0.05
"""Seconds that one turn lasts at least: a shorter call is repeated until they are filled."""


def take_turns(calls: Mapping[K, Callable[[], Any]], rounds: int) -> dict[K, tuple[list[float], str | None]]:
    """Time every call once in each round: name -> (seconds per call, one number a round; why there are none, or None).
    The order is reversed in every other round.
    """
    repeats: dict[K, int] = {}
    problems: dict[K, str] = {}
    for name, call in calls.items():
        try:
            for _ in range(WARM):
                call()
            repeats[name] = max(1, round(SHORTEST / seconds_of(call, 1)))
        except (BackendError, EngineError, SizeError) as error:
            problems[name] = str(error)
    times: dict[K, list[float]] = {name: [] for name in repeats}
    for turn in range(rounds):
        for name in list(repeats)[:: -1 if turn % 2 else 1]:
            times[name].append(seconds_of(calls[name], repeats[name]))
    return {name: (times.get(name, []), problems.get(name)) for name in calls}


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """Seconds per call, averaged over ``repeats`` calls in a row. Nothing is left to wait for after the last of them: a
    call of ``VAE`` returns only when its result is complete.
    """
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """The median, the least and the most of ``seconds`` in milliseconds, by the names of ``Timing``'s fields."""
    ms = [1000 * value for value in seconds]
    return {"ms": statistics.median(ms), "least_ms": min(ms), "most_ms": max(ms)}
