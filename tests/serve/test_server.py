"""``vaedeploy serve`` as a process: what it says, what it refuses to start with, and how it stops."""

from __future__ import annotations

import json
import os
import re
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
from serving import Answered, body_of, post, read_answer, serving, until
from tiny_bundle import FAILED, tiny_bundle

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError
from vaedeploy.runtime import VAE
from vaedeploy.system.interrupts import ending_early


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny").path


@contextmanager
def started(*arguments: object, files: int = 1024) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server that is ready, and its port. files: how many it may have open."""
    command = [
        "sh",
        "-c",
        f'ulimit -n {files}; exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "vaedeploy",
        "serve",
        *map(str, arguments),
        "--port",
        "0",
        "--warm-up",
        "16x16",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    try:
        for line in process.stderr:
            said += line
            if line.startswith("Ready after"):
                break
        found = re.search(r"Listening on http://127\.0\.0\.1:(\d+) for", said)
        assert found, said
        yield process, int(found[1])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_what_it_says(bundle):
    with started(f"small={bundle}") as (process, port):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(connection).status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err == "Stopped by SIGINT; every request was answered\n"
    (line,) = out.splitlines()
    assert json.loads(line)["path"] == "/v2/health/ready"


def test_it_needs_neither_pytorch_nor_onnx():
    script = "import sys, vaedeploy.serve.server; print({'torch', 'onnx', 'onnx_ir', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def refused(vaedeploy, *arguments: object) -> str:
    ended = vaedeploy("serve", *arguments)
    assert (ended.code, ended.out) == (2, "")
    return ended.err


def test_what_it_refuses_to_start_with(vaedeploy, bundle, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refused(vaedeploy, bundle, "--port", port)
        assert told == (
            f"Error: cannot listen on port {port} of 127.0.0.1: another program does. Choose another port with --port, "
            "or 0 for any that is free\n"
        )
    assert refused(vaedeploy, bundle, "--host", "no.such.host.invalid").startswith(
        "Error: cannot listen on 'no.such.host.invalid': "
    )
    assert refused(vaedeploy, bundle, "--host", "192.0.2.1").startswith(
        "Error: cannot listen on port 8000 of 192.0.2.1: Cannot assign requested address. Give an address of this"
    )
    free = ("--port", "0")
    assert refused(vaedeploy, bundle, bundle, *free) == (
        f"Error: bundles {bundle} and {bundle} are both called tiny; give one another name: NAME={bundle}\n"
    )
    assert refused(vaedeploy, f"a b={bundle}", *free) == (
        f"Error: 'a b' cannot be part of a path; give a name of letters, digits, '.', '_' and '-': NAME={bundle}\n"
    )
    assert "there is no bundle" in refused(vaedeploy, tmp_path / "none", *free)
    unverified = tiny_bundle(tmp_path / "unverified", verification=FAILED).path
    assert refused(vaedeploy, unverified, *free) == (
        f"Error: bundle {unverified} failed its verification; its images may be wrong. Run: vaedeploy verify "
        f"{unverified}. To serve it all the same, give --allow-unverified\n"
    )
    damaged = tiny_bundle(tmp_path / "damaged").path
    (damaged / "decoder.onnx").write_bytes(b"x" * (damaged / "decoder.onnx").stat().st_size)
    assert "decoder.onnx" in refused(vaedeploy, bundle, f"other={damaged}", *free)
    assert "'64' is not a size; give height x width" in refused(vaedeploy, bundle, "--warm-up", "64", *free)
    assert refused(vaedeploy, bundle, f"b={bundle}", "--warm-up", "64x64", "--warm-up", "30x64", *free) == (
        "Error: tiny cannot be warmed up at 30x64 (height x width): both must be multiples of 4, and at least that. "
        "Give another --warm-up\n"
    )
    assert refused(vaedeploy, f"={bundle}", *free).startswith(
        "Error: '' cannot be part of a path; give a name of letters"
    )
    assert "Missing argument '[NAME=]BUNDLE...'" in refused(vaedeploy)


def test_an_unverified_bundle_is_served_with_a_warning(tmp_path):
    unverified = tiny_bundle(tmp_path / "unverified", verification=None).path
    with started(unverified, "--allow-unverified") as (process, _):
        process.terminate()
        assert process.wait(timeout=30) == 0


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
                with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                    try:
                        connection.sendall(sent)
                        if not connection.recv(1, socket.MSG_PEEK):
                            continue  # it was not accepted
                    except ConnectionError:
                        continue
                    answers.append(read_answer(connection))

    with started(bundle) as (process, port):
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
    with started(bundle) as (process, port), ExitStack() as stack:
        for sent in (b"POST /v1/decode HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", *[waiting] * 20):
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(sent)
        process.terminate()
        while True:  # until it is stopping: a new connection is refused then
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                time.sleep(0.01)
            except ConnectionRefusedError:
                break
        process.send_signal(number)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert err == f"{at_once(number)}\n"


def test_more_connections_than_files_that_may_be_open(bundle):
    """asyncio would log a traceback for each connection that waits, over and over."""
    with started(bundle, files=150) as (process, port), ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(300)]
        assert {read_answer(connection).status for connection in opened[-100:]} == {503}
        opened[0].sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(opened[0]).status == 200
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert err == "Stopped by SIGTERM; every request was answered\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="it needs a full disk")  # noqa: PTH110
def test_a_full_disk_ends_the_log_and_not_the_server(bundle):
    command = [sys.executable, "-m", "vaedeploy", "serve", str(bundle), "--port", "0", "--warm-up", "16x16"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    port = 0
    for line in process.stderr:
        if found := re.search(r"127\.0\.0\.1:(\d+)", line):
            port = int(found[1])
        if line.startswith("Ready"):
            break
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(connection).status == 200
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.splitlines()) == (
        0,
        [
            "Warning: cannot write the result to stdout: No space left on device; requests are no longer logged",
            "Stopped by SIGTERM; every request was answered",
        ],
    )


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
        _, told = server.communicate()
    assert (server.returncode, told) == (0, "Stopped by SIGTERM; every request was answered\n")


def test_a_second_signal_stops_the_warm_up_at_once(tiny_vae_bundle: Bundle) -> None:
    with warming_up(tiny_vae_bundle.path) as server:
        os.kill(server.pid, signal.SIGSTOP)  # both are there when it goes on
        server.terminate()
        server.send_signal(signal.SIGINT)
        os.kill(server.pid, signal.SIGCONT)
        _, told = server.communicate()
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
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | places) as server:
            with hub.accept()[0]:
                server.terminate()
                _, told = server.communicate()
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
        with serving({"tiny": vae}, wait=False, warm_up=((16, 16), (32, 32))) as server:
            until(lambda: bool(vae.sizes))
            server.server.handle_exit(signal.SIGTERM, None)
            vae.stopping.set()
    assert vae.sizes == [(16, 16)]
    assert server.said[-1] == "Stopped by SIGTERM; every request was answered"
