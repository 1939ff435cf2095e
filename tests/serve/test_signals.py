"""Signals to ``vaedeploy serve``: one answers what is in flight and ends with 0, a second ends at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from served import served
from serving import Answered, body_of, post, read_answer, serving, until

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError
from vaedeploy.runtime import VAE
from vaedeploy.system.interrupts import ending_early


def stop_under_load(bundle: Path, clients: int) -> None:
    """Clients send one request after another until the port is closed. Each that was read is answered, and whole."""
    latent = np.random.default_rng(0).standard_normal((1, 2, 64, 64), np.float32)
    with VAE(bundle) as vae:
        wanted = vae.compute("decoder", latent, ["image", "image_u8", "finite"])
    body, length = body_of(latent)
    sent = post("/v2/models/tiny-decode/infer", body, f"Inference-Header-Content-Length: {length}")
    answers: list[Answered] = []

    def client(port: int) -> None:
        with suppress(ConnectionRefusedError):
            while True:
                try:
                    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
                except ConnectionResetError:
                    continue  # the port was closed while it connected
                with connection:
                    try:
                        connection.sendall(sent)
                        if not connection.recv(1, socket.MSG_PEEK):
                            continue  # it was not accepted
                    except ConnectionError:
                        continue
                    answers.append(read_answer(connection))

    with served(bundle) as (process, port):
        threads = [threading.Thread(target=client, args=(port,)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        while len(answers) < clients:
            time.sleep(0.01)
        process.terminate()
        out, err = process.communicate(timeout=60)
        for thread in threads:
            thread.join(60)
    assert (process.returncode, err) == (0, "Stopped by SIGTERM; every request was answered\n")
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["status"] for line in lines} == {200}
    assert len(answers) == len(lines)
    image = np.ascontiguousarray(wanted["image_u8"]).tobytes()
    assert all(answer.status == 200 and answer.body.find(image) > 0 for answer in answers)


def test_sigterm_under_load(bundle):
    stop_under_load(bundle, clients=8)


@pytest.mark.full
@pytest.mark.parametrize("time", range(20))
def test_sigterm_under_load_many_times(bundle, time):
    stop_under_load(bundle, clients=4 + 2 * time)


def at_once(number: signal.Signals) -> str:
    return f"Stopped at once by {number.name}, the second signal; requests that were not answered are lost"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_it_at_once(bundle, number):
    body, length = body_of(np.zeros((1, 2, 400, 400), np.float32))
    waiting = post("/v2/models/tiny-decode/infer", body, f"Inference-Header-Content-Length: {length}")
    with served(bundle) as (process, port), ExitStack() as stack:
        for sent in (b"POST /v1/decode HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", *[waiting] * 20):
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(sent)
        process.terminate()
        while True:  # until it is stopping: a new connection is refused then
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                time.sleep(0.01)
            except (ConnectionRefusedError, ConnectionResetError):  # closed before it connected, or while it did
                break
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == f"{at_once(number)}\n"


@contextmanager
def warming_up(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A server that warms up for longer than the tests take."""
    command = [sys.executable, "-m", "vaedeploy", "serve", str(place), "--port", "0", "--warm-up", "2048x2048"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        while not server.stderr.readline().startswith("Warming up"):
            pass
        yield server


def test_a_signal_ends_the_warm_up(tiny_vae_bundle: Bundle) -> None:
    with warming_up(tiny_vae_bundle.path) as server:
        server.terminate()
        _, told = server.communicate(timeout=60)
    assert (server.returncode, told) == (0, "Stopped by SIGTERM; every request was answered\n")


def test_a_second_signal_stops_the_warm_up_at_once(tiny_vae_bundle: Bundle) -> None:
    with warming_up(tiny_vae_bundle.path) as server:
        os.kill(server.pid, signal.SIGSTOP)  # both are there when it goes on
        server.terminate()
        server.send_signal(signal.SIGINT)
        os.kill(server.pid, signal.SIGCONT)
        _, told = server.communicate(timeout=60)
    # Of signals that wait, the one of the lowest number comes first.
    assert (server.returncode, told) == (143, f"{at_once(signal.SIGTERM)}\n")


def test_a_signal_ends_the_loading() -> None:
    """The hub that the bundle is on does not answer."""
    with socket.socket() as hub:
        hub.bind(("127.0.0.1", 0))
        hub.listen()
        hub.settimeout(60)
        places = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "NO_PROXY": "*"}
        command = [sys.executable, "-m", "vaedeploy", "serve", "hf://someone/something", "--port", "0"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | places)
        with server, hub.accept()[0]:
            server.terminate()
            _, told = server.communicate(timeout=60)
    assert (server.returncode, told) == (0, "Stopped by SIGTERM before a bundle was served\n")


class Late(VAE):
    """Its warm-up waits for a signal, begins a call, and ends only if that call is ended."""

    stopping: threading.Event
    sizes: list[tuple[int, int]]

    def warm_up(self, sizes: Iterable[tuple[int, int]], *, batch: int = 1) -> None:
        self.sizes += sizes
        self.stopping.wait(60)
        ended = threading.Event()
        with ending_early(ended.set):
            assert ended.wait(60)
        raise BackendError("it was ended")


def test_a_signal_also_ends_what_the_warm_up_begins_after_it(bundle: Path) -> None:
    """A graph that is being loaded when the signal comes is run afterwards."""
    with Late(bundle) as vae:
        vae.stopping, vae.sizes = threading.Event(), []
        with serving({"tiny": vae}, wait=False, warm_up=((32, 32), (16, 16))) as server:
            until(lambda: bool(vae.sizes))
            server.server.handle_exit(signal.SIGTERM, None)
            vae.stopping.set()
    assert vae.sizes == [(32, 32)]
    assert server.said[-1] == "Stopped by SIGTERM; every request was answered"
