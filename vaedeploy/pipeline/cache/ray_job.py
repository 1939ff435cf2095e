"""Shards made on a Ray cluster, by actors that each hold a VAE and some cores or a GPU.

Actors of Ray's core are given one shard after another, like the processes of ``workers``. Ray Data is not used, for
three reasons. It reads and writes in tasks that need a core each, and waits silently where actors have them all. It
gives an actor several shards ahead, so that its death loses more than one. And it retries a shard that kills its actors
for ever.
"""

from __future__ import annotations

import os
import re
import signal
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vaedeploy.errors import BackendError, InputError, OutputError
from vaedeploy.images.cache_format import CACHE, CacheInfo
from vaedeploy.pipeline.cache.cluster import Node, cluster, nodes
from vaedeploy.pipeline.cache.plan import Shard
from vaedeploy.pipeline.cache.reading import Reader
from vaedeploy.pipeline.cache.shards import make_shard
from vaedeploy.pipeline.cache.sources import stamp_of
from vaedeploy.pipeline.cache.turns import Turns
from vaedeploy.pipeline.cache.workers import DEATHS, Answer, Work, answer_of, cores_of, count_death, shared, value_of
from vaedeploy.runtime import VAE, UnverifiedBundleWarning
from vaedeploy.runtime.candidate import HOST
from vaedeploy.system.interrupts import stop_if_interrupted
from vaedeploy.system.machine import usable_cores
from vaedeploy.system.oserrors import reason
from vaedeploy.system.progress import Progress
from vaedeploy.values.words import counted
from vaedeploy.version import __version__

CORES = 4
"""The most cores of a worker where the number of workers is not given. Each worker takes the memory of a VAE."""

PATIENCE = 3
"""Seconds that actors have to end."""

SHARED = "Source and cache must be in folders that all machines of the Ray cluster have under the same path"

WAITING = "Waiting for workers in the Ray cluster"


@dataclass(frozen=True)
class _Job:
    """What every actor is told. stamp: that of cache.json in ``folder``, on the machine of the command."""

    version: str
    bundle: Path
    options: Mapping[str, Any]
    folder: Path
    stamp: tuple[int, int]
    info: CacheInfo
    cores: int
    gpu: bool


@contextmanager
def ray_work(
    address: str | bool,
    workers: int | None,
    bundle: Path,
    options: Mapping[str, Any],
    folder: Path,
    info: CacheInfo,
    progress: Progress,
) -> Iterator[Work]:
    """Context with what makes shards in a cluster of Ray.

    address: see ``cluster``. workers: see ``cut``. bundle, options: what each actor opens its VAE with. The bundle, the
    pictures and the cache must have the same paths on all machines of the cluster.

    The ``Work`` raises what ``make_shard`` raises; InputError for files that a machine does not see; and BackendError
    for actors that die again and again, and where no machine has room for one any more.
    """
    with cluster(address, progress):
        machines = nodes()
        gpu = options.get("backend") not in HOST and any(node.gpus for node in machines)
        cores, count = cut(machines, workers, options.get("threads"), gpu)
        folder = folder.absolute()
        job = _Job(
            __version__,
            bundle.absolute(),
            {**options, "device": 0} if gpu else options,  # Ray shows an actor its own GPU alone
            folder,
            stamp_of((folder / CACHE).stat()),
            info,
            cores,
            gpu,
        )
        yield partial(_work_on, job, count, progress)


def room(machines: list[Node], cores: int, gpu: bool) -> int:
    """How many workers of ``cores`` cores, and of a GPU each if ``gpu``, the machines have room for."""
    return sum(min(node.cores // cores, node.gpus) if gpu else node.cores // cores for node in machines)


def cut(machines: list[Node], workers: int | None, threads: int | None, gpu: bool) -> tuple[int, int]:
    """(cores of a worker, how many workers): ``threads`` cores each, or as many as ``workers`` can have.

    Where the number of workers is not given, it is as many as there is room for, each with a GPU if ``gpu``, and up to
    ``CORES`` cores. Raises InputError where there is no room for them.
    """
    largest = max((node.cores for node in machines if node.gpus or not gpu), default=0)
    wanted = workers or (max(1, room(machines, 1, gpu)) if gpu else 1)
    for cores in [threads] if threads else range(largest if workers else min(largest, CORES), 0, -1):
        if room(machines, cores, gpu) >= wanted:
            return cores, workers or room(machines, cores, gpu)
    cores = threads or 1
    raise InputError(
        f"the Ray cluster has room for {counted(room(machines, cores, gpu), 'worker')} of {counted(cores, 'core')}"
        f"{' and a GPU' if gpu else ''}, and {wanted} are wanted. It has {_words(machines)}"
    )


class _Encoder:
    """What an actor does. Ray restarts no actor: one that dies is replaced here."""

    def __init__(self, job: _Job) -> None:
        import ray

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first process ends the others
        warnings.simplefilter("ignore", UnverifiedBundleWarning)  # the process that began this has warned
        self._job = job
        self._node: str = ray.util.get_node_ip_address()

    def open(self) -> Answer:
        """Check what is there, and open the VAE."""
        return self._told(self._open)

    def make(self, shard: Shard, following: Shard | None) -> Answer:
        return self._told(partial(self._make, shard, following))

    def _told(self, work: Callable[[], bool]) -> Answer:
        answer = answer_of(work)
        return answer if isinstance(answer, bool) else (answer[0], f"on the machine {self._node}: {answer[1]}")

    def _open(self) -> bool:
        job = self._job
        if job.version != __version__:
            raise BackendError(f"there is vaedeploy {__version__}, and {job.version} where the command was given")
        _check_folder(job)
        options = _options(job, [node for node in nodes() if node.address == self._node])
        self._vae, self._reader = VAE(job.bundle, **options), Reader(job.info, cores_of(options))
        return True

    def _make(self, shard: Shard, following: Shard | None) -> bool:
        _check_pictures(shard)
        return make_shard(self._vae, self._job.folder, self._job.info, shard, self._reader, following)


def _options(job: _Job, machine: list[Node]) -> dict[str, Any]:
    """The arguments of ``VAE`` on a machine. machine: its nodes, one except in tests."""
    options = shared(job.options, max(1, room(machine, job.cores, job.gpu)))
    return {**options, "threads": min(job.cores, usable_cores())}  # Ray may have been told of more cores than there are


def _check_folder(job: _Job) -> None:
    place = job.folder / CACHE
    try:
        same = stamp_of(place.stat()) == job.stamp
    except OSError as error:
        raise OutputError(f"{place} cannot be read: {reason(error)}. {SHARED}") from error
    if not same:
        raise OutputError(f"{place} is another file than where the command was given. {SHARED}")


def _check_pictures(shard: Shard) -> None:
    """Raise InputError for a picture that cannot be read here, since it could be where the command was given.

    Otherwise it would be a failure that the shard keeps.
    """
    for path in {picture.path for picture, _ in shard.pictures}:
        if not os.access(path, os.R_OK):
            raise InputError(f"{path} cannot be read. {SHARED}. If it was removed just now, run the command again")


def _work_on(
    job: _Job, count: int, progress: Progress, shards: list[Shard]
) -> Generator[tuple[Shard, bool], None, None]:
    """Like ``workers.work_on``, with at most ``count`` actors: those for which there is no room yet begin later."""
    import ray

    actors = ray.remote(_Encoder).options(
        num_cpus=job.cores, num_gpus=int(job.gpu), max_restarts=0, scheduling_strategy="SPREAD"
    )
    turns = Turns(shards)
    asked: dict[Any, tuple[Any, Shard | None]] = {}  # answer to come -> the actor, its shard, or None while it opens
    deaths: dict[str, int] = {}
    lost = 0  # actors that died while opening the VAE, since the last one that opened it
    told = False
    try:
        while turns or _at_work(asked):
            for _ in range(min(count, len(turns) + _at_work(asked)) - len(asked)):
                actor = actors.remote(job)
                asked[actor.open.remote()] = (actor, None)
            if not _at_work(asked):
                _check_room(job)
                if not told:
                    progress(WAITING, 0, 1)
                    told = True
            ready, _ = ray.wait(list(asked), timeout=1)
            stop_if_interrupted()
            for answer in ready:
                actor, shard = asked[answer]
                try:
                    made = value_of(ray.get(answer))
                except ray.exceptions.RayActorError as error:
                    ray.kill(actor)  # it may be alive, but out of reach
                    del asked[answer]
                    if shard is None:
                        lost += 1
                        _check_lost(lost, count, error)
                    else:
                        count_death(deaths, shard, _last_line(error))
                        turns.give_back(actor, shard)
                    continue
                del asked[answer]
                if turns:
                    given, following = turns.take(actor)
                    asked[actor.make.remote(given, following)] = (actor, given)
                else:
                    ray.kill(actor)
                if shard is not None:
                    yield shard, made
                    continue
                lost = 0
                if told:
                    progress(WAITING, 1, 1)
                    told = False
    finally:
        for actor, _ in asked.values():
            ray.kill(actor)
        if asked:  # their leftovers are swept up once they have ended
            ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)


def _at_work(asked: Mapping[Any, tuple[Any, Shard | None]]) -> int:
    """How many actors are at work on a shard."""
    return sum(shard is not None for _, shard in asked.values())


def _check_room(job: _Job) -> None:
    machines = nodes()
    if not room(machines, job.cores, job.gpu):
        raise BackendError(
            f"no machine of the Ray cluster has room for a worker of {counted(job.cores, 'core')} any more. It has "
            f"{_words(machines)}. What was made stays: run the command again"
        )


def _check_lost(lost: int, count: int, error: Any) -> None:
    """Raise BackendError where actors cannot start, or more die while opening the VAE than a lost machine explains."""
    if error.actor_init_failed:
        found = re.search(r"\bip=([^ ,)]+)", str(error))
        where = f"the machine {found[1]}" if found else "a machine of the Ray cluster"
        raise BackendError(
            f"{where} cannot start a worker: {_last_line(error)}. All need vaedeploy {__version__} in the environment "
            "that Ray runs in"
        )
    if lost >= count + DEATHS:
        raise BackendError(
            f"{lost} workers died one after another before they had opened the VAE, the last: {_last_line(error)}"
        )


def _last_line(error: Exception) -> str:
    """Why an actor died; Ray's lines before that say which it was."""
    return str(error).strip().splitlines()[-1]


def _words(machines: list[Node]) -> str:
    """The machines, for an error."""
    return ", ".join(f"{node.address} with {counted(node.cores, 'core')} and {node.gpus} GPUs" for node in machines)
