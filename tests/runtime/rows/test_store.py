"""Arrays whose memory is given back row by row, and arrays in files that nobody can leave behind."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, InputError, OutputError
from vaedeploy.runtime.rows.store import GIVES_BACK, PAGE, Workspace, empty, give_back

RAM_DISK = Path("/dev/shm")


@pytest.mark.parametrize("shape", [(1, 3, 40, 700), (1, 5, 9, 33), (1, 40 * 513, 7)])
def test_what_is_not_given_back_stays(shape: tuple[int, ...]) -> None:
    array, axis = empty(shape, np.float32), 1 if len(shape) == 3 else 2
    array[...] = wanted = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    rows, done = shape[axis], 0
    for end in (1, 2, rows // 3, rows - 1, rows):
        give_back(array, axis, done, end)
        left = (slice(None),) * axis + (slice(end, None),)
        assert np.array_equal(array[left], wanted[left])
        done = end


@pytest.mark.skipif(not GIVES_BACK, reason="numpy allocates, and says it in its own words")
def test_memory_that_is_not_there_is_said() -> None:
    message = r"^a call by rows cannot get 4,611,686,018,427,387,904 bytes of memory: Cannot allocate memory\. Give a "
    with pytest.raises(BackendError, match=message):
        empty((1 << 62,), np.uint8)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.skipif(not GIVES_BACK, reason="this system does not take memory back at once")
def test_what_is_given_back_is_free() -> None:
    array = empty((1, 16, 1024, 1024), np.float32)
    array.fill(1)
    before = resident()
    give_back(array, 2, 0, 700)
    give_back(array, 2, 700, 900)
    assert before - resident() > 0.85 * array.nbytes
    assert (array[:, :, 900:] == 1).all()


def test_an_array_in_a_file_takes_no_memory(tmp_path: Path) -> None:
    array = Workspace(tmp_path).empty((1, 16, 1024, 1024), np.float32)
    values = np.random.default_rng(0).standard_normal((1, 16, 100, 1024)).astype(np.float32)
    before = resident()
    for row in range(0, 1024, 100):
        array.write(2, row, values[:, :, : 1024 - row])
    assert resident() - before < 2 * values.nbytes
    assert not list(tmp_path.iterdir())
    assert np.array_equal(array.read(2, 250, 320), np.concatenate([values[:, :, 50:], values[:, :, :20]], axis=2))
    assert np.array_equal(array.read(2, 1000, 1024), values[:, :, :24])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not GIVES_BACK, reason="this system does not list the files of a process")
def test_files_are_closed_where_garbage_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that of an error whose frames keep it: a file that is collected first warns that it is not closed."""
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    gc.collect()  # which may close files of other tests
    before = open_files()
    ring: list[object] = [Workspace(tmp_path).empty((64,), np.uint8) for _ in range(3)]
    ring.append(ring)
    assert open_files() == before + 3
    del ring
    gc.collect()
    assert open_files() == before
    assert not said


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_workspace_that_is_no_folder_is_refused(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind == "a file":
        place.write_text("")
    message = rf"^workspace {place} cannot be used: .*\. Give a folder in which you may write$"
    with pytest.raises(InputError, match=message):
        Workspace(place)


@pytest.mark.skipif(not RAM_DISK.is_dir(), reason="there is no disk here that can be full without harm")
def test_a_full_disk_is_said() -> None:
    message = r"^workspace /dev/shm does not take [0-9,]+ bytes: No space left on device\. Free space there, or"
    with pytest.raises(OutputError, match=message):
        Workspace(RAM_DISK).empty((1 << 46,), np.uint8)
    assert os.statvfs(RAM_DISK).f_bavail > 0


def test_a_workspace_that_goes_away_is_said(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    workspace = Workspace(place)
    place.rmdir()
    message = (
        rf"^workspace {place} does not take 64 bytes: No such file or directory\. Make its folder first, or choose"
    )
    with pytest.raises(OutputError, match=message):
        workspace.empty((64,), np.uint8)


def test_a_limit_on_files_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    workspace = Workspace(tmp_path)
    array = workspace.empty((1 << 21,), np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OutputError, match="does not take 2,097,152 bytes: File too large"):
            workspace.empty((1 << 21,), np.uint8)
        # As on a disk that gives no room to what is written over.
        with pytest.raises(OutputError, match="does not take 5 bytes: File too large"):
            array.write(0, 1 << 20, np.ones(5, np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


CHILD = """
import sys, warnings
import numpy as np
import vaedeploy as vd
warnings.simplefilter("ignore")
bundle, workspace, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
least = vd.VAE(bundle, "onnxruntime-cpu", max_memory=2**20, workspace=workspace).plan(size, size)["decoder"]
assert least.disk > 0
told = lambda *how_far: print("running", flush=True)
vae = vd.VAE(bundle, "onnxruntime-cpu", max_memory=least.least, workspace=workspace, progress=told)
latent = np.zeros((1, vae.latent.channels, size // vae.latent.factor, size // vae.latent.factor), np.float32)
vae.decode(latent)
"""


def test_a_killed_call_leaves_nothing(tiny_vae_bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tiny_vae_bundle.path), str(tmp_path), "1024"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        time.sleep(0.1)
        child.kill()
    assert not list(tmp_path.iterdir())
