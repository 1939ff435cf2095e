"""Jobs that are killed at any moment, and workers of theirs: what is there afterwards is what a whole run makes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from data_sets import content, count_shards, data_set, shard_files

import vaedeploy as vd
from vaedeploy.bundle import Bundle
from vaedeploy.errors import OutputError
from vaedeploy.images.cache_format import CacheInfo, read_cache_document
from vaedeploy.pipeline.cache.plan import Shard
from vaedeploy.pipeline.cache.workers import work_on

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")

PICTURES = 40

OPTIONS = {"buckets": 32, "shard": 2, "flip": True}

JOBS = f"""
import os, sys
import onnxruntime, vaedeploy as vd
from vaedeploy.pipeline.cache import cache_latents
if __name__ == "__main__":
    for line in sys.stdin:  # importing takes a second, and is done once
        bundle, source, out, workers = line.split()
        child = os.fork()
        if not child:
            cache_latents(bundle, source, out, workers=int(workers), **{OPTIONS})
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Jobs:
    """Starts jobs, each in a process of its own."""

    def __init__(self, program: Path) -> None:
        program.write_text(JOBS)
        command = [sys.executable, str(program)]
        self._parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, *words: object) -> int:
        """The process of a new job."""
        assert self._parent.stdin is not None
        self._parent.stdin.write(" ".join(map(str, words)) + "\n")
        self._parent.stdin.flush()
        return self._number()

    def end(self) -> int:
        """The exit code of the job, when it has ended; that of a signal is negative."""
        return self._number()

    def _number(self) -> int:
        assert self._parent.stdout is not None
        return int(self._parent.stdout.readline())

    def close(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait()
        assert self._parent.stdout is not None
        self._parent.stdout.close()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    started = Jobs(tmp_path_factory.mktemp("jobs") / "jobs.py")
    yield started
    started.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("many"), PICTURES)


@pytest.fixture(scope="module")
def whole(bundle: Bundle, many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "latents"
    vd.cache_latents(bundle, many, out, **OPTIONS)
    return content(out)


def children(process: int) -> list[int]:
    """The workers of a job; not the process in which Python keeps an eye on shared memory."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [child for child in map(int, listed) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: object, what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def kill_and_go_on(jobs: Jobs, kills: int, seed: int, bundle: Bundle, many: Path, out: Path) -> int:
    """Start a job again and again, and kill it at random moments, until it was killed that often or has ended.

    Returns how often it was killed. Each kill comes after between no and three more shards.
    """
    rng = random.Random(seed)
    for kill in range(kills):
        process = jobs.start(bundle.path, many, out, 1)
        wanted, moment = min(count_shards(out) + rng.randint(0, 3), PICTURES // 2), rng.uniform(0, 0.02)
        wait_until(
            lambda wanted=wanted, process=process: count_shards(out) >= wanted or not is_alive(process), "no progress"
        )
        time.sleep(moment)
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        if jobs.end() == 0:
            return kill
    return kills


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.full)])
def test_a_killed_job_goes_on(
    kills: int, jobs: Jobs, bundle: Bundle, many: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    done, tries = 0, 0
    while done < kills:
        out = tmp_path / str(tries)
        done += kill_and_go_on(jobs, kills - done, tries, bundle, many, out)
        before = shard_files(out)
        cached = vd.cache_latents(bundle, many, out, **OPTIONS)
        assert cached.made == cached.shards - len(before)
        assert shard_files(out) >= before
        assert content(out) == whole
        tries += 1


def test_two_jobs_on_one_folder(
    jobs: Jobs, bundle: Bundle, many: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    jobs.start(bundle.path, many, tmp_path / "out", 1)
    cached = vd.cache_latents(bundle, many, tmp_path / "out", **OPTIONS)
    assert jobs.end() == 0
    assert (cached.pictures, cached.failures) == (PICTURES, ())
    assert content(tmp_path / "out") == whole


@pytest.mark.slow
def test_killed_workers_and_their_job(
    jobs: Jobs, bundle: Bundle, many: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """A worker that is killed is replaced; those of a job that is killed end. No shard that was there is made again."""
    out = tmp_path / "out"
    process = jobs.start(bundle.path, many, out, 2)
    wait_until(lambda: len(children(process)) == 2 and count_shards(out), "workers made no shard")
    first, second = children(process)
    made = shard_files(out)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(set(children(process)) - {first}) == 2, "the worker was not replaced")
    workers = children(process)
    os.kill(process, signal.SIGKILL)
    assert jobs.end() == -signal.SIGKILL
    wait_until(lambda: not any(map(is_alive, workers)), "workers live on")
    assert second in workers
    made |= shard_files(out)
    vd.cache_latents(bundle, many, out, **OPTIONS)
    assert shard_files(out) >= made
    assert content(out) == whole


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_its_workers_before_it_sweeps(bundle: Bundle, many: Path, tmp_path: Path) -> None:
    def stop(what: str, done: float, total: float) -> None:
        if what.startswith("Encoding") and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vd.cache_latents(bundle, many, tmp_path / "out", workers=2, progress=stop, **OPTIONS)
    assert not children(os.getpid())
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.is_file()]


@pytest.mark.full
@pytest.mark.parametrize("seed", range(5))
def test_a_job_whose_workers_are_killed_ends_well(
    seed: int, jobs: Jobs, bundle: Bundle, many: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    rng, out = random.Random(seed), tmp_path / "out"
    process = jobs.start(bundle.path, many, out, 2)
    wait_until(lambda: len(children(process)) == 2 and count_shards(out) > rng.randint(0, 5), "workers made no shard")
    os.kill(rng.choice(children(process)), signal.SIGKILL)
    assert jobs.end() == 0
    assert content(out) == whole


@pytest.mark.slow
def test_errors_of_workers_are_raised_here(bundle: Bundle, many: Path, tmp_path: Path) -> None:
    vd.cache_latents(bundle, many, tmp_path / "out", **OPTIONS)
    info = read_cache_document(tmp_path / "out/cache.json", CacheInfo)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file/shards/a\.safetensors: Not a directory"):
        list(work_on([Shard("a", (16, 16), ())], 1, bundle.path, {}, tmp_path / "file", info))
