"""Processes of this machine that make shards. Each holds the VAE, and is given one shard after another, with the one
that follows.

Shared with the actors of ``ray_job``: ``Work``, the answers, and how many deaths a shard may cost.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

from vaedeploy import errors
from vaedeploy.errors import BackendError, VaedeployError
from vaedeploy.images.cache_format import CacheInfo
from vaedeploy.pipeline.cache.plan import Shard
from vaedeploy.pipeline.cache.reading import Reader
from vaedeploy.pipeline.cache.shards import make_shard
from vaedeploy.pipeline.cache.turns import Turns
from vaedeploy.runtime import VAE, UnverifiedBundleWarning
from vaedeploy.runtime.rows.budget import Budget
from vaedeploy.system.machine import usable_cores
from vaedeploy.system.memory import LEAST_LIMIT

DEATHS = 3
"""How many workers may die over one shard. The system kills one when memory runs out, and another may do better."""


Work = Callable[[list[Shard]], Generator[tuple[Shard, bool], None, None]]
"""Makes shards, and gives each with whether it was free (see ``make_shard``), in any order."""

Answer = bool | tuple[str, str]
"""What a worker answers: whether the shard was free, or the kind of an error, and its message."""


class _Worker:
    """A process, the pipe to it, and the shard that it is at work on."""

    def __init__(self, bundle: Path, options: Mapping[str, Any], folder: Path, info: CacheInfo) -> None:
        # spawn: a forked process would have a copy of ONNX Runtime's threads, which do not run there.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_work, args=(theirs, bundle, dict(options), folder, info), daemon=True
        )
        self.process.start()
        theirs.close()  # only the process holds that end, so that its death shows here
        self.shard: Shard | None = None

    def give(self, shard: Shard, following: Shard | None) -> None:
        self.shard = shard
        with suppress(OSError):  # it has died, which shows when its answer is read
            self.pipe.send((shard, following))

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def work_on(
    shards: list[Shard], count: int, bundle: Path, options: Mapping[str, Any], folder: Path, info: CacheInfo
) -> Generator[tuple[Shard, bool], None, None]:
    """The ``Work`` of ``count`` processes.

    bundle, options: what each process opens its VAE with. One that dies is replaced, and its shard given to another.

    Raises what ``make_shard`` raises, and BackendError for a shard over which ``DEATHS`` processes died.
    """
    turns = Turns(shards)
    deaths: dict[str, int] = {}
    workers: dict[Connection, _Worker] = {}
    try:
        while turns or workers:
            while turns and len(workers) < count:
                worker = _Worker(bundle, options, folder, info)
                workers[worker.pipe] = worker
                worker.give(*turns.take(worker))
            for pipe in wait(list(workers), timeout=1):
                assert isinstance(pipe, Connection)
                worker = workers[pipe]
                shard = worker.shard
                assert shard is not None  # workers without a shard are no longer in the list
                try:
                    answer = pipe.recv()
                except (EOFError, OSError):
                    del workers[pipe]
                    worker.end()
                    count_death(deaths, shard, f"code {worker.process.exitcode}")
                    turns.give_back(worker, shard)
                    continue
                yield shard, value_of(answer)
                if turns:
                    worker.give(*turns.take(worker))
                else:
                    del workers[pipe]
                    worker.end()
    finally:
        for worker in workers.values():
            worker.end()


def shared(options: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The arguments of ``VAE`` for each of several workers of a machine, which share its cores and its memory."""
    share = max(LEAST_LIMIT, Budget(options.get("max_memory")).limit() // count)
    return {"threads": max(1, usable_cores() // count), **options, "max_memory": share}


def cores_of(options: Mapping[str, Any]) -> int:
    """How many cores a worker may use, from the arguments of its ``VAE``."""
    threads: int | None = options.get("threads")
    return threads or usable_cores()


def answer_of(work: Callable[[], bool]) -> Answer:
    """What ``work`` returns, or the error of vaedeploy that it raises."""
    try:
        return work()
    except VaedeployError as error:
        kinds = [kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__)]
        return kinds[0], str(error)


def value_of(answer: Answer) -> bool:
    """What a worker's work returned. Raises the error that was raised there."""
    if isinstance(answer, bool):
        return answer
    kind, message = answer
    error: VaedeployError = getattr(errors, kind)(message)
    raise error


def count_death(deaths: dict[str, int], shard: Shard, how: str) -> None:
    """Note a death of a worker that was at work on ``shard``. Raises BackendError if it was the last of ``DEATHS``."""
    deaths[shard.name] = deaths.get(shard.name, 0) + 1
    if deaths[shard.name] >= DEATHS:
        raise BackendError(
            f"{DEATHS} workers died one after another at shard {shard.name} (pictures of {shard.size[0]}x"
            f"{shard.size[1]}), the last: {how}. If memory ran out (dmesg says so), take fewer --workers or give "
            "--max-memory"
        )


def _work(pipe: Connection, bundle: Path, options: dict[str, Any], folder: Path, info: CacheInfo) -> None:
    """What a process does: open the VAE, and make the shards that arrive through ``pipe``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", UnverifiedBundleWarning)  # the process that started this one has warned

    def work() -> NoReturn:
        with VAE(bundle, **options) as vae, Reader(info, cores_of(options)) as reader:
            while True:
                shard, following = pipe.recv()
                pipe.send(make_shard(vae, folder, info, shard, reader, following))

    with suppress(EOFError, BrokenPipeError):
        pipe.send(answer_of(work))


def _end_with_parent() -> None:
    """End this process if the one that started it is killed. Only the shard in progress is lost."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
