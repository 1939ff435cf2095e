"""Timing several calls in turns, so that whatever disturbs one of them disturbs all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from vaedeploy.errors import BackendError, EngineError, SizeError

K = TypeVar("K", bound=Hashable)

WARM = 2
"""How many calls run before any is timed: they compile kernels and record CUDA graphs."""

SHORTEST = 0.05
"""The least seconds of one turn: a shorter call is repeated until they are filled."""


def take_turns(calls: Mapping[K, Callable[[], Any]], rounds: int) -> dict[K, tuple[list[float], str | None]]:
    """Time every call once in each round: name -> (seconds per call, one number a round; why there are none, or None).
    The order is reversed in every other round.
    """
    seconds, problems = warm_up(calls, WARM)
    times = take_rounds(calls, seconds, rounds)
    return {name: (times.get(name, []), problems.get(name)) for name in calls}


def warm_up(calls: Mapping[K, Callable[[], Any]], times: int) -> tuple[dict[K, float], dict[K, str]]:
    """Run every call ``times`` times, and once more with a clock: the seconds of that run, and why a call has none."""
    seconds: dict[K, float] = {}
    problems: dict[K, str] = {}
    for name, call in calls.items():
        try:
            for _ in range(times):
                call()
            seconds[name] = seconds_of(call, 1)
        except (BackendError, EngineError, SizeError) as error:
            problems[name] = str(error)
    return seconds, problems


def take_rounds(
    calls: Mapping[K, Callable[[], Any]], seconds: Mapping[K, float], rounds: int, budget: float = math.inf
) -> dict[K, list[float]]:
    """The rounds of ``take_turns``, for the calls in ``seconds``, which are warm: seconds per call, one number a round.

    seconds: about how long one call takes. budget: in seconds. A round begins only if it would end within that, were it
    as long as the last one; the first always runs.
    """
    repeats = {name: max(1, round(SHORTEST / taken)) for name, taken in seconds.items()}
    times: dict[K, list[float]] = {name: [] for name in repeats}
    started = time.perf_counter()
    for turn in range(rounds):
        began = time.perf_counter()
        for name in list(repeats)[:: -1 if turn % 2 else 1]:
            times[name].append(seconds_of(calls[name], repeats[name]))
        ended = time.perf_counter()
        if (ended - started) + (ended - began) > budget:
            break
    return times


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
