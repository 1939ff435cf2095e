"""A VAE in forked processes, in others that it is pickled to, and at the end of its own process."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_inputs import CHANNELS, noise

from vaedeploy.bundle import Bundle
from vaedeploy.errors import InputError
from vaedeploy.runtime import VAE
from vaedeploy.runtime.backends import find_candidates
from vaedeploy.runtime.candidate import Candidate, Settings
from vaedeploy.runtime.dispatch import Dispatch
from vaedeploy.runtime.onnxruntime_cpu import measuring_session
from vaedeploy.runtime.runner import Runner
from vaedeploy.system.machine import usable_cores
from vaedeploy.values.kinds import Part

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

START = """
import os, sys, threading, time
import numpy as np
from vaedeploy.runtime import VAE

vae = VAE(sys.argv[1], threads=4)  # with more than one thread, ONNX Runtime joins those that are not there
latent = np.ones((1, 2, 4, 4), np.float32)
image = vae.decode(latent)

def child(work):
    process = os.fork()
    if not process:
        work()
        sys.exit()
    for _ in range(1200):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return print(os.waitstatus_to_exitcode(status))
        time.sleep(0.05)
    os.kill(process, 9)
    print("hangs")

"""


def ended(script: str, bundle: Bundle) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", START + script, str(bundle.path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


FORKS = """
def same():
    assert (vae.decode(latent) == image).all()

def another():
    with VAE(sys.argv[1], threads=4) as other:
        assert (other.decode(latent) == image).all()

child(lambda: None)
child(vae.close)
child(same)
child(another)
child(lambda: child(same))
vae.close()
child(lambda: None)
"""


@forks
def test_a_forked_process_goes_on_and_ends(bundle: Bundle) -> None:
    """It closes, decodes, opens another VAE, forks again, and ends as any process does."""
    done = ended(FORKS, bundle)
    assert (done.stdout.split(), done.stderr) == (["0"] * 7, "")


DAEMONS = """
def work():
    while True:
        vae.decode(np.ones((4, 2, 64, 64), np.float32))

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.5)
"""


def test_daemon_threads_do_not_abort_the_end(bundle: Bundle) -> None:
    done = ended(DAEMONS, bundle)
    assert (done.returncode, done.stderr) == (0, "")


class Opening:
    """A candidate of a bundle whose opening of the decoder waits for ``go_on``."""

    def __init__(self, bundle: Bundle) -> None:
        (real,) = find_candidates(bundle, Settings(backend="onnxruntime-cpu"))
        self.begun, self.go_on = threading.Event(), threading.Event()

        def open_half(part: Part) -> Runner:
            if part == "decoder":
                self.begun.set()
                assert self.go_on.wait(60)
            return real.open(part)

        self.dispatch = Dispatch(bundle, [Candidate(real.backend, real.precision, open_half)], False, "raise")

    def decode(self) -> None:
        self.dispatch.run("decoder", ["image", "finite"], {"latent": noise(1, CHANNELS, 2, 2)})

    def encode(self) -> None:
        self.dispatch.run("encoder", ["latent_mean"], {"image": np.zeros((1, 3, 8, 8), np.float32)})


def test_opening_one_half_does_not_hold_up_the_other(bundle: Bundle) -> None:
    opening = Opening(bundle)
    thread = threading.Thread(target=opening.decode)
    thread.start()
    assert opening.begun.wait(60)
    opening.encode()  # would wait for ever
    opening.go_on.set()
    thread.join()


def test_a_half_is_opened_once(bundle: Bundle) -> None:
    opening = Opening(bundle)
    threads = [threading.Thread(target=opening.decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert opening.begun.wait(60)
    opening.begun.clear()
    opening.go_on.set()
    for thread in threads:
        thread.join()
    assert not opening.begun.is_set()


def test_what_is_closed_while_it_opens_stays_closed(bundle: Bundle) -> None:
    opening, errors = Opening(bundle), []

    def decode() -> None:
        try:
            opening.decode()
        except InputError as error:
            errors.append(str(error))

    thread = threading.Thread(target=decode)
    thread.start()
    assert opening.begun.wait(60)
    opening.dispatch.close()
    opening.go_on.set()
    thread.join()
    assert errors == [f"this VAE is closed; open it again: VAE({str(bundle.path)!r})"]
    assert not opening.dispatch._runners


@forks
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_a_half_is_opened(bundle: Bundle) -> None:
    opening = Opening(bundle)
    thread = threading.Thread(target=opening.decode)
    thread.start()
    assert opening.begun.wait(60)
    process = os.fork()
    if not process:
        code = 1
        try:
            opening.go_on.set()
            opening.encode()
            opening.decode()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    opening.go_on.set()
    thread.join()


def test_a_vae_is_pickled_by_its_path_and_arguments(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.path.parent)
    latent = noise(1, CHANNELS, 2, 2)
    latent[0, 0, 0, 0] = 3e38
    with VAE(bundle.path.name, "onnxruntime-cpu", threads=1, on_nan="warn", verify_hashes=False) as vae:
        image = vae.decode(latent)
        monkeypatch.chdir(tmp_path)
        data = pickle.dumps(vae)
    with pickle.loads(data) as again:
        assert again.path == bundle.path
        assert pickle.dumps(again) == data
        np.testing.assert_array_equal(again.decode(latent), image)


def test_sessions_that_measure_take_the_cores_that_the_process_may_use(bundle: Bundle) -> None:
    session = measuring_session(bundle.graph("decoder"))
    assert session.get_session_options().intra_op_num_threads == usable_cores()


def test_nothing_is_sent_to_the_makers_of_onnx_runtime() -> None:
    script = (
        "import os; from vaedeploy.runtime import onnxruntime_cpu as ort; ort.load_library(); print(os.environ['X'])"
    )
    script = script.replace("X", "ORT_DISABLE_TELEMETRY")
    without = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    for environment, wanted in ((without, "1"), ({**without, "ORT_DISABLE_TELEMETRY": "0"}, "0")):
        told = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert told.stdout.strip() == wanted
