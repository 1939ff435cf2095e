"""Requests in line for a VAE: which of them go into a call together, and when.

On a GPU, requests of one size are joined. A size is ripe when its batch is full or has waited for the delay; the ripe
size that waited longest goes first. On a CPU each request is a call, and several run side by side, but large calls take
turns. All of this except the calls runs on the thread of the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaedeploy.serve.refusals import busy
from vaedeploy.values.kinds import Part

Outputs = dict[str, NDArray[Any]]

Compute = Callable[[Part, NDArray[Any], Sequence[str]], Outputs]
"""A half's named outputs for a batch: ``VAE.compute``."""


@dataclass(frozen=True)
class Computed:
    """What a request gets. queued, computed: seconds. joined: how many requests its call had."""

    outputs: Outputs
    queued: float
    computed: float
    joined: int


@dataclass(eq=False)
class Job:
    """A request in line. array: its items along the first axis. since: when it joined the line, in seconds of
    ``monotonic``. large: whether its call is large, and so takes turns.
    """

    part: Part
    array: NDArray[Any]
    outputs: tuple[str, ...]
    since: float
    result: asyncio.Future[Computed]
    large: bool

    @property
    def items(self) -> int:
        return len(self.array)

    @property
    def key(self) -> object:
        """Equal for requests that may be joined."""
        return self.part, self.array.dtype, self.array.shape[1:], self.outputs, self.large


class Call(NamedTuple):
    """What a call gave its requests: outputs, or an error. began: in seconds of ``monotonic``."""

    jobs: Sequence[Job]
    outputs: Outputs
    error: Exception | None
    began: float
    seconds: float


class Line:
    """The requests that wait for one VAE.

    calls: how many may run at once. most: the most items of a joined call; 1 joins nothing. delay: seconds that a
    request waits for others. longest: how many requests may wait. is_large, large_calls: which requests are large, and
    how many calls may be large; while these run, other large requests wait, and small ones pass them. told: is called
    after each call with the half, its items, its requests and its seconds.
    """

    def __init__(
        self,
        compute: Compute,
        *,
        calls: int,
        most: int,
        delay: float,
        longest: int,
        is_large: Callable[[Part, NDArray[Any]], bool] = lambda *_: False,
        large_calls: int = 1,
        told: Callable[[Part, int, int, float], None] = lambda *_: None,
    ) -> None:
        self._compute, self._most, self._delay, self._longest, self._told = compute, most, delay, longest, told
        self._is_large, self._large_calls, self._large_running = is_large, large_calls, 0
        self.calls = calls
        self._threads = [ThreadPoolExecutor(1, f"vaedeploy-serve-{number}") for number in range(calls)]
        self._free = self._threads[::-1]
        self._waiting: dict[object, deque[Job]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def batches(self) -> list[int]:
        """The batch sizes of calls: powers of two."""
        return [2**power for power in range(self._most.bit_length())]

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """How many calls run."""
        return self.calls - len(self._free)

    def check(self) -> None:
        """Raise RequestError (503) if no other request may wait."""
        if self.waiting >= self._longest:
            raise busy(f"{self._longest} requests wait already; try again later")

    def compute(self, part: Part, array: NDArray[Any], outputs: Sequence[str]) -> asyncio.Future[Computed]:
        """The named outputs of a half for ``array``, once it is its turn, or what the VAE raises for this array.

        When the future is cancelled, the request leaves the line. Raises RequestError (503) if too many wait.
        """
        self.check()
        result: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
        job = Job(part, array, tuple(outputs), monotonic(), result, self._is_large(part, array))
        result.add_done_callback(lambda _: self._leave(job))
        self._waiting.setdefault(job.key, deque()).append(job)
        self._start()
        return result

    def close(self) -> None:
        """Wait for the calls that run."""
        for thread in self._threads:
            thread.shutdown()

    def _leave(self, job: Job) -> None:
        jobs = self._waiting.get(job.key)
        if jobs and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._waiting[job.key]

    def _start(self) -> None:
        """Start as many calls as may run."""
        while self._free and (jobs := self._next()):
            # The thread that was busy last: glibc keeps freed memory for the thread that took it, and taking threads in
            # turn would take new memory from the system in every call.
            thread = self._free.pop()
            self._large_running += jobs[0].large
            thread.submit(self._work, jobs, thread, asyncio.get_running_loop())

    def _work(self, jobs: list[Job], thread: ThreadPoolExecutor, loop: asyncio.AbstractEventLoop) -> None:
        """Compute the requests in one call, in a thread. If that fails, compute each alone: no request fails because of
        the others in its call.
        """
        calls = [self._call(jobs)]
        if len(jobs) > 1 and calls[0].error:
            calls = [self._call([job]) for job in jobs]
        # A future of the executor would cost the event loop another turn. If the loop has ended, so have the clients,
        # and the error that this raises is dropped.
        loop.call_soon_threadsafe(self._ended, thread, calls)

    def _ended(self, thread: ThreadPoolExecutor, calls: Sequence[Call]) -> None:
        for call in calls:
            self._share_out(call)
        self._large_running -= calls[0].jobs[0].large
        self._free.append(thread)
        self._start()

    def _next(self) -> list[Job]:
        """The requests of the next call, taken out of the line; none where all wait for others or for their turn."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        may_run = [jobs for jobs in self._waiting.values() if self._may_run(jobs[0])]
        if not may_run:
            return []
        oldest = min(may_run, key=lambda jobs: jobs[0].since)
        now = monotonic()
        ripe = [jobs for jobs in may_run if self._is_ripe(jobs, now)]
        if not ripe:
            wait = oldest[0].since + self._delay - now
            self._timer = asyncio.get_running_loop().call_later(wait, self._start)
            return []
        chosen = min(ripe, key=lambda jobs: jobs[0].since)
        key = chosen[0].key
        taken = [chosen.popleft() for _ in range(self._how_many(chosen))]
        if not chosen:
            del self._waiting[key]
        return taken

    def _may_run(self, job: Job) -> bool:
        return not job.large or self._large_running < self._large_calls

    def _is_ripe(self, jobs: deque[Job], now: float) -> bool:
        return self._most == 1 or now >= jobs[0].since + self._delay or sum(job.items for job in jobs) >= self._most

    def _how_many(self, jobs: deque[Job]) -> int:
        """How many of these requests, from the first on, go into one call: the most with a power of two of items, or
        one.

        Backends on a GPU make a plan for each batch size, for which ONNX Runtime may take seconds, and keep few plans.
        Powers of two are few, and the VAE was warmed up with them.
        """
        number, items = 1, 0
        for count, job in enumerate(jobs, start=1):
            items += job.items
            if items > self._most:
                break
            if items.bit_count() == 1:
                number = count
        return number

    def _call(self, jobs: Sequence[Job]) -> Call:
        """Compute the items of all ``jobs``, in a thread."""
        began = monotonic()
        outputs: Outputs = {}
        failure: Exception | None = None
        try:
            array = jobs[0].array if len(jobs) == 1 else np.concatenate([job.array for job in jobs])
            outputs = self._compute(jobs[0].part, array, jobs[0].outputs)
        except Exception as error:
            failure = error
        return Call(jobs, outputs, failure, began, monotonic() - began)

    def _share_out(self, call: Call) -> None:
        """Give each request its part of what their call computed, or its error."""
        if call.error:
            for job in call.jobs:
                _settle(job, call.error)
            return
        self._told(call.jobs[0].part, sum(job.items for job in call.jobs), len(call.jobs), call.seconds)
        start = 0
        for job in call.jobs:
            own = {name: value[start : start + job.items] for name, value in call.outputs.items()}
            start += job.items
            _settle(job, Computed(own, call.began - job.since, call.seconds, len(call.jobs)))


def _settle(job: Job, result: Computed | Exception) -> None:
    if job.result.done():  # the client has gone
        return
    if isinstance(result, Exception):
        job.result.set_exception(result)
    else:
        job.result.set_result(result)
