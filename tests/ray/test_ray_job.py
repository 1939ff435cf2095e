"""Caches that a Ray cluster makes, the local one and one of two nodes. make test-ray runs these, in an environment of
their own: Ray takes 240 MB.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from data_sets import content, count_shards, data_set, shard_files
from ray_cluster import encoders, missing, processes, two_nodes, until
from tiny_bundle import tiny_bundle

import vaedeploy as vd
from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, InputError, OutputError
from vaedeploy.pipeline.cache import ray_job

why = missing()
pytestmark = pytest.mark.skip(reason=why) if why else pytest.mark.slow

PICTURES = 240

SHARD = 2

SHARDS = PICTURES // SHARD

OPTIONS: dict[str, Any] = {"size": (256, 256), "shard": SHARD}

WORDS = ("--size", "256x256", "--shard", str(SHARD))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, of which one is broken behind its header."""
    folder = data_set(tmp_path_factory.mktemp("photos"), PICTURES)
    broken = folder / "000.png"
    broken.write_bytes(broken.read_bytes()[:100])
    return folder


@pytest.fixture(scope="module")
def whole(bundle: Bundle, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run without Ray."""
    out = tmp_path_factory.mktemp("whole") / "latents"
    cached = vd.cache_latents(bundle, photos, out, **OPTIONS)
    assert [failure.key for failure in cached.failures] == ["000.png"]
    return content(out)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as cluster:
        yield cluster


class Command:
    """``vaedeploy cache`` in a process of its own."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, "-m", "vaedeploy", "cache", *map(str, words)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self) -> tuple[int, str]:
        """Exit code and stderr."""
        self.out, told = self.process.communicate(timeout=400)
        return self.process.returncode, told


def leftovers(out: Path) -> list[Path]:
    return [path for path in out.rglob(".*") if path.is_file()]


# ------------------------------------------------------------------------------------------------ a cluster of its own


def test_the_files_are_those_of_a_run_without_ray(
    bundle: Bundle, photos: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """On all cores. Of what Ray says, nothing is heard, and of what it starts, nothing is left."""
    before, folders = processes(), set(Path("/tmp").glob("ray-*"))
    out = tmp_path / "latents"
    code, told = Command(bundle.path, photos, "-o", out, *WORDS, "--ray").end()
    assert code == 2, told
    lines = [line.partition(": done in")[0].removesuffix(" ...") for line in told.splitlines()]
    assert list(dict.fromkeys(lines)) == [
        f"Finding pictures in {photos}",
        f"Encoding {PICTURES} pictures",
        "Starting Ray on this machine",
        ray_job.WAITING,
        f"{PICTURES - 1} pictures in {SHARDS} shards, {SHARDS} of them made now; 1 picture failed",
        lines[-1],
    ]
    assert "1 of 240 pictures failed" in lines[-1]
    assert content(out) == whole
    until(lambda: processes() <= before, "the cluster's processes end")
    assert set(Path("/tmp").glob("ray-*")) <= folders


@pytest.mark.parametrize("moment", ["while Ray starts", "while actors work"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_the_cluster(
    number: signal.Signals, code: int, moment: str, bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    before, folders, out = processes(), set(Path("/tmp").glob("ray-*")), tmp_path / "latents"
    command = Command(bundle.path, photos, "-o", out, "--size", "1024x1024", "--shard", 1, "--ray")
    if moment == "while Ray starts":
        until(lambda: processes() - before, "Ray starts")
    else:
        until(lambda: count_shards(out), "there is a shard")
    command.process.send_signal(number)
    ended, told = command.end()
    assert ended == code, told
    assert told.endswith("; nothing half-written was left behind\n")
    assert not leftovers(out)
    until(lambda: processes() <= before, "the cluster's processes end")
    assert set(Path("/tmp").glob("ray-*")) <= folders


def test_the_cluster_of_a_killed_command_ends(
    bundle: Bundle, photos: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    before, folders, out = processes(), set(Path("/tmp").glob("ray-*")), tmp_path / "latents"
    command = Command(bundle.path, photos, "-o", out, *WORDS, "--ray")
    until(lambda: count_shards(out), "there is a shard")
    command.process.kill()
    assert command.end()[0] == -signal.SIGKILL
    until(lambda: not encoders(), "its actors end")
    until(lambda: processes() <= before, "its processes end")  # some of Ray's take a minute
    for folder in set(Path("/tmp").glob("ray-*")) - folders:
        shutil.rmtree(folder)
    vd.cache_latents(bundle, photos, out, **OPTIONS)
    assert content(out) == whole


# ----------------------------------------------------------------------------------------------- a cluster of two nodes


def test_actors_on_every_core_of_two_nodes(
    cluster: Any,
    bundle: Bundle,
    photos: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the cluster that RAY_ADDRESS names."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    told: list[str] = []
    cached = vd.cache_latents(
        bundle,
        photos,
        tmp_path / "latents",
        ray=True,
        workers=2,
        progress=lambda what, done, total: told.append(what),
        **OPTIONS,
    )
    assert f"Joining the Ray cluster at {cluster.address}" in told
    assert cached.made == SHARDS
    assert content(tmp_path / "latents") == whole


def kill_once(command: Command, out: Path, rng: random.Random) -> bool:
    """Kill the command or one of its actors with SIGKILL, after some more shards. False where it had ended before."""
    wanted = min(count_shards(out) + rng.randint(1, 10), SHARDS)
    until(lambda: count_shards(out) >= wanted or command.process.poll() is not None, "there are more shards")
    time.sleep(rng.uniform(0, 0.05))
    actors = encoders()
    if command.process.poll() is not None or not actors:
        return False
    try:
        os.kill(rng.choice([command.process.pid, *actors]), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.full)])
def test_killed_actors_and_commands(
    kills: int, cluster: Any, bundle: Bundle, photos: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Each kill hits an actor or the command, at a random moment. A killed command is given again. No shard that was
    there is made again.
    """
    rng, killed, tries = random.Random(kills), 0, 0
    while killed < kills:
        out, code, made = tmp_path / str(tries), -signal.SIGKILL, set[tuple[str, int]]()
        while code == -signal.SIGKILL:
            command = Command(bundle.path, photos, "-o", out, *WORDS, "--ray", cluster.address)
            while killed < kills and kill_once(command, out, rng):
                killed += 1
                made |= shard_files(out)
            code, told = command.end()
        assert code == 2, told
        assert shard_files(out) >= made
        assert content(out) == whole
        tries += 1


def test_a_node_that_dies(cluster: Any, bundle: Bundle, photos: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "latents"
    node = cluster.add_node(num_cpus=1)
    command = Command(bundle.path, photos, "-o", out, *WORDS, "--workers", 3, "--ray", cluster.address)
    until(lambda: len(encoders()) == 3 and count_shards(out), "three actors work")
    cluster.remove_node(node, allow_graceful=False)
    code, told = command.end()
    assert code == 2, told
    assert content(out) == whole


def test_workers_that_die_over_and_over(cluster: Any, bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    command = Command(bundle.path, photos, "-o", tmp_path / "latents", *WORDS, "--ray", cluster.address)
    while command.process.poll() is None:
        for process in encoders():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    code, told = command.end()
    assert code == 1
    assert "workers died one after another" in told
    assert "Traceback" not in told
    assert "raylet" not in told + command.out


def acting(when: str, act: Callable[[], object]) -> Callable[[str, float, float], None]:
    """A progress that acts when ``when`` begins."""

    def progress(what: str, done: float, total: float) -> None:
        if what == when and done == 0:
            act()

    return progress


def test_what_a_machine_does_not_see(cluster: Any, bundle: Bundle, tmp_path: Path) -> None:
    """All nodes are on this machine: what goes after the command has seen it stands for what they never had."""
    photos, out = data_set(tmp_path / "photos", 4), tmp_path / "latents"

    def run(act: Callable[[], object]) -> None:
        vd.cache_latents(bundle, photos, out, ray=cluster.address, progress=acting(ray_job.WAITING, act), **OPTIONS)

    with pytest.raises(InputError, match=rf"on the machine [\d.]+: {photos}/000.png cannot be read\. Source and cache"):
        run((photos / "000.png").unlink)
    with pytest.raises(OutputError, match=rf"on the machine [\d.]+: {out}/cache.json is another file than"):
        run(lambda: os.utime(out / "cache.json"))
    with pytest.raises(OutputError, match=rf"on the machine [\d.]+: {out}/cache.json cannot be read: No such file"):
        run((out / "cache.json").unlink)


def test_errors_of_actors_are_those_of_the_command(cluster: Any, bundle: Bundle, tmp_path: Path) -> None:
    photos, out = data_set(tmp_path / "photos", 4), tmp_path / "latents"

    def spoil() -> None:
        (out / "shards").rmdir()
        (out / "shards").touch()

    with pytest.raises(OutputError, match=r"on the machine [\d.]+: cannot write .*\.safetensors: Not a directory"):
        vd.cache_latents(bundle, photos, out, ray=cluster.address, progress=acting(ray_job.WAITING, spoil), **OPTIONS)


def test_another_version_is_told(
    cluster: Any, bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_job, "__version__", "0.0.1")
    with pytest.raises(
        BackendError, match=f"there is vaedeploy {vd.__version__}, and 0.0.1 where the command was given"
    ):
        vd.cache_latents(bundle, photos, tmp_path / "latents", ray=cluster.address, **OPTIONS)


def test_a_machine_that_cannot_import_vaedeploy_is_told(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path/vaedeploy.py").write_text("raise ImportError('there is none here')")
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    with two_nodes() as cluster:
        monkeypatch.setenv("PYTHONPATH", before)
        monkeypatch.chdir(tmp_path)  # a folder of the command's is one of its actors' as well
        code, told = Command(bundle.path, photos, "-o", "latents", *WORDS, "--ray", cluster.address).end()
    assert code == 1
    assert "cannot start a worker: ImportError: there is none here. All need vaedeploy" in told


def test_more_workers_than_cores_are_refused(cluster: Any, bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the Ray cluster has room for 2 workers of 1 core, and 9 are wanted"):
        vd.cache_latents(bundle, photos, tmp_path / "latents", ray=cluster.address, workers=9, **OPTIONS)


@pytest.mark.parametrize(
    ("address", "error", "reason"),
    [
        ("ray://10.0.0.1:10001", InputError, "an address of Ray's client or of its dashboard. Give host:port"),
        ("here", InputError, "'here' is not the address of a Ray cluster; give host:port"),
        ("127.0.0.1:1", BackendError, "no Ray cluster answers at 127.0.0.1:1: Connection refused"),
        ("nowhere.invalid:6379", BackendError, "no Ray cluster answers at nowhere.invalid:6379"),
    ],
)
def test_addresses(
    address: str, error: type[Exception], reason: str, bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=reason):
        vd.cache_latents(bundle, photos, tmp_path / "latents", ray=address, **OPTIONS)
