"""Processes of this machine that make shards. Each holds the VAE, and is told one shard after another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Generator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from vaedeploy import errors
from vaedeploy.errors import BackendError, VaedeployError
from vaedeploy.images.cache_format import CacheInfo
from vaedeploy.pipeline.cache.plan import Shard
from vaedeploy.pipeline.cache.shards import make_shard
from vaedeploy.runtime import VAE, UnverifiedBundleWarning

DEATHS = 3
"""Workers that may die over one shard. The system ends a process where memory runs out, and another may do better."""


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
        theirs.close()  # the process alone holds that end, so that its death is heard here
        self.shard: Shard | None = None

    def give(self, shard: Shard) -> None:
        self.shard = shard
        with suppress(OSError):  # it has died, which is heard when it is listened to
            self.pipe.send(shard)

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def work_on(
    shards: list[Shard], count: int, bundle: Path, options: Mapping[str, Any], folder: Path, info: CacheInfo
) -> Generator[tuple[Shard, bool], None, None]:
    """Make shards in ``count`` processes; give each with whether it was free, see ``make_shard``, in no order.

    bundle, options: what each process opens its VAE with. One that dies is replaced, and its shard given to another.

    Raises what ``make_shard`` raises, and BackendError for a shard over which ``DEATHS`` processes died.
    """
    waiting = deque(shards)
    deaths: dict[str, int] = {}
    workers: dict[Connection, _Worker] = {}
    try:
        while waiting or workers:
            while waiting and len(workers) < count:
                worker = _Worker(bundle, options, folder, info)
                workers[worker.pipe] = worker
                worker.give(waiting.popleft())
            for pipe in wait(list(workers), timeout=1):
                assert isinstance(pipe, Connection)
                worker = workers[pipe]
                shard = worker.shard
                assert shard is not None  # a worker without one is no longer among them
                try:
                    answer = pipe.recv()
                except (EOFError, OSError):
                    del workers[pipe]
                    worker.end()
                    _count_death(deaths, shard, worker.process.exitcode)
                    waiting.appendleft(shard)
                    continue
                if isinstance(answer, tuple):
                    raise _as_error(*answer)
                yield shard, answer
                if waiting:
                    worker.give(waiting.popleft())
                else:
                    del workers[pipe]
                    worker.end()
    finally:
        for worker in workers.values():
            worker.end()


def _count_death(deaths: dict[str, int], shard: Shard, code: int | None) -> None:
    deaths[shard.name] = deaths.get(shard.name, 0) + 1
    if deaths[shard.name] >= DEATHS:
        raise BackendError(
            f"{DEATHS} processes died one after another at shard {shard.name} (pictures of {shard.size[0]}x"
            f"{shard.size[1]}), the last with code {code}. If memory ran out (dmesg says so), take fewer --workers or "
            "give --max-memory"
        )


def _as_error(kind: str, message: str) -> VaedeployError:
    found = getattr(errors, kind, BackendError)
    error: VaedeployError = found(message)
    return error


def _work(pipe: Connection, bundle: Path, options: dict[str, Any], folder: Path, info: CacheInfo) -> None:
    """What a process does: open the VAE, and make the shards that come by ``pipe``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", UnverifiedBundleWarning)  # the process that started this one has warned
    try:
        with VAE(bundle, **options) as vae:
            while True:
                pipe.send(make_shard(vae, folder, info, pipe.recv()))
    except (EOFError, BrokenPipeError):
        return
    except VaedeployError as error:
        kinds = [kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__)]
        pipe.send((kinds[0], str(error)))


def _end_with_parent() -> None:
    """End this process where the one that started it was killed. The shard in progress is lost, and nothing else."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
