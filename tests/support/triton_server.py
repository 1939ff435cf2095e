"""The Triton server that the wheel of PyTriton carries, with its Python backend and this process' Python."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PATIENCE = 180
"""Seconds after which something that was to happen has not; a busy machine takes a minute to load models."""


def missing() -> str | None:
    """Why the server cannot be run here; None where it can."""
    if find_spec("pytriton") is None:
        return "this Python has no Triton server: run make test-triton, which makes an environment that has one"
    if not (folder() / "backends/python/triton_python_backend_stub").exists():
        return f"PyTriton has no stub for Python {sys.version_info[0]}.{sys.version_info[1]}: run make triton-env"
    return None


def folder() -> Path:
    spec = find_spec("pytriton")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "tritonserver"


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    log: Path
    http: int
    grpc: int
    metrics: int

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page. 0 where nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def pending(self, model: str) -> int:
        """How many requests wait for a model."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        found = re.search(rf'^nv_inference_pending_request_count{{model="{model}",.*}} (\d+)', text, re.MULTILINE)
        return int(found[1]) if found else 0

    def stub(self, model: str) -> int:
        """The process of this server that runs a model."""
        for place in Path("/proc").iterdir():
            if place.name.isdecimal():
                try:
                    words = (place / "cmdline").read_bytes().split(b"\0")
                    parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:  # it is gone by now
                    continue
                is_stub = parent == self.process.pid and words[0].endswith(b"triton_python_backend_stub")
                if is_stub and any(f"/{model}/".encode() in word for word in words):
                    return int(place.name)
        raise AssertionError(f"no process runs {model}")


def runs(process: int) -> bool:
    """Whether a process runs; one that has ended may wait for long to be asked for its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(happened: Callable[[], bool], what: str) -> None:
    """Wait until ``happened()`` is true."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, f"{what}: not in {PATIENCE} s"
        time.sleep(0.02)


def prepare(repository: Path, *, delay: int | None = None, first_line: str | None = None) -> None:
    """Let the models of a repository run in this process' environment.

    delay: microseconds that requests wait for others. first_line: is put before model.py.
    """
    for config in repository.glob("*/config.pbtxt"):
        text = config.read_text()
        text += f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{sys.prefix}" }} }}\n'
        if delay is not None:
            text, count = re.subn(r"(max_queue_delay_microseconds:) \d+", rf"\1 {delay}", text)
            assert count == 1
        config.write_text(text)
    if first_line is not None:
        for model in repository.glob("*/1/model.py"):
            model.write_text(f"{first_line}\n{model.read_text()}")


@contextmanager
def serving(
    repositories: Sequence[Path], log: Path, *options: object, whole: bool = True, patience: int = 20
) -> Iterator[Server]:
    """A server of these repositories, ready; of which some models need not load unless ``whole``.

    patience: seconds that it waits for its models when it is to stop.
    """
    ports = free_ports(3)
    home = folder()
    command = [
        home / "bin/tritonserver", "--backend-directory", home / "backends", "--exit-timeout-secs", patience,
        *(word for place in repositories for word in ("--model-repository", place)),
        *(word for kind in ("http", "grpc", "metrics") for word in (f"--{kind}-address", "127.0.0.1")),
        "--http-port", ports[0], "--grpc-port", ports[1], "--metrics-port", ports[2],
        *(() if whole else ("--exit-on-error", "false")), *options,
    ]  # fmt: skip
    # The stub takes the first libpython that it finds, and must not take the system's for this Python.
    environment = os.environ | {"LD_LIBRARY_PATH": str(Path(sys.base_prefix) / "lib")}
    with log.open("wb") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, env=environment)
    server = Server(process, log, *ports)
    memory = set(shared_memory())
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            return server.get("/v2/health/ready" if whole else "/v2/health/live")[0] == 200

        until(answers, "the server runs")
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for left in set(shared_memory()) - memory:  # of models whose process was killed
            left.unlink(missing_ok=True)


def shared_memory() -> Iterator[Path]:
    return Path("/dev/shm").glob("triton_python_backend_shm_region_*")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
