"""Builds one engine in a separate process, and turns what the process reports into an ``Engine`` or an error."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx_ir as ir

from vaedeploy.bundle.manifest import EngineIdentity
from vaedeploy.engines.protocol import Advanced, BuildRequest, Built, Event, Failed, Missing, Ready
from vaedeploy.errors import BackendError, BuildError
from vaedeploy.graph.graph import module_path
from vaedeploy.system.cache import cache_folder
from vaedeploy.system.installs import ENGINE_EXTRAS, install_command
from vaedeploy.system.messages import LastMessages
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import Backend

log = logging.getLogger(__name__)

__all__ = ["Engine", "backend_version", "build_engine", "timing_cache_file"]

OUT_OF_MEMORY = re.compile(r"out of memory|outofmemory|cudaErrorMemoryAllocation|std::bad_alloc", re.IGNORECASE)

PARSER = re.compile(r"In node -?\d+ with name: (?P<node>\S*) and operator: (?P<operator>\S+)")

POLYGRAPHYS_WORDS = "Invalid Engine"
"""How Polygraphy's error for a failed build begins, whatever the cause."""

DETAILS = re.compile(r"^\[[EFW!]\] ")
"""How TensorRT's and Polygraphy's log lines about failures begin."""


@dataclass(frozen=True)
class Engine:
    """A built engine.

    path: its file. tensors, layers: see ``manifest.EngineInfo``. weights_bytes, activation_bytes: bytes of the weights,
    and of the activations at the largest size of each optimisation profile, as the builder reported them.
    """

    path: Path
    tensors: dict[str, str]
    layers: dict[str, int]
    weights_bytes: int
    activation_bytes: tuple[int, ...]


def backend_version(backend: Backend) -> str:
    """The version of ``backend``. Raises BackendError, naming what to install, if it cannot be imported."""
    ready = [event for event in _converse(BuildRequest(backend=backend), _Log()) if isinstance(event, Ready)]
    return ready[0].version


def build_engine(request: BuildRequest, what: str, progress: Progress = silent) -> Engine:
    """Build the engine that ``request`` describes, and write it to ``request.out``.

    what: names the build, for ``progress`` and errors. Raises BackendError if the backend cannot be imported, and
    BuildError, with TensorRT's last messages, if the build fails; ``request.out`` may be half-written then.
    """
    log = _Log()
    built = None
    progress(what, 0, 1)
    for event in _converse(request, log):
        if isinstance(event, Advanced):
            progress(what, min(event.share, 0.99), 1)
        elif isinstance(event, Built):
            built = event
        elif isinstance(event, Failed):
            raise BuildError(f"{what} failed: {_explain(event, log, request)}")
    assert built is not None  # if the worker had ended without a result, _converse would have raised
    progress(what, 1, 1)
    return Engine(Path(request.out), built.tensors, built.layers, log.weights, tuple(log.activations))


def timing_cache_file(identity: EngineIdentity) -> str | None:
    """The file where ``tensorrt`` keeps its measurements for the next build; None if it keeps none."""
    if identity.backend != "tensorrt":
        return None
    model = (identity.gpu or identity.compute_capability).replace(" ", "-").replace("/", "-")
    try:
        return str(cache_folder("timing") / f"{identity.backend_version}-{model}.cache")
    except OSError as error:
        log.warning("there is no place for TensorRT's timing cache (%s), so this build takes longer", error)
        return None


class _Log:
    """What is kept of TensorRT's log: the last messages, and the memory sizes, which TensorRT reports nowhere else."""

    def __init__(self) -> None:
        self.messages = LastMessages("TensorRT")
        self.activations: list[int] = []
        self.weights = 0

    def add(self, line: str) -> None:
        if DETAILS.match(line):
            self.messages.add(line)
        elif match := re.search(r"Total Activation Memory: (\d+)", line):
            self.activations.append(int(match[1]))
        elif match := re.search(r"Total Weights Memory: (\d+)", line):
            self.weights = int(match[1])


def _converse(request: BuildRequest, log: _Log) -> Iterator[Event]:
    """Start a worker, send it ``request``, and yield its events. Raises BackendError if the backend cannot be imported,
    BuildError if the worker dies.
    """
    with _worker() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        reader = threading.Thread(target=_read_lines, args=(process.stderr, log.add), daemon=True)
        reader.start()
        with suppress(BrokenPipeError):  # the worker is dead already; the error below says how it died
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            process.stdin.flush()  # left open: if this process dies, the worker reads the end
        ended = False
        for line in process.stdout:
            event = msgspec.json.decode(line, type=Event)
            if isinstance(event, Missing):
                raise BackendError(_missing(request.backend, event))
            if isinstance(event, Failed):
                reader.join(timeout=10)  # the reasons are in stderr
            ended = isinstance(event, (Failed, Built)) or request.graph is None
            yield event
        reader.join(timeout=10)
        code = process.wait()
        if not ended:
            raise BuildError(f"the build's process {_death(code)}{log.messages.quote()}")


@contextmanager
def _worker() -> Iterator[subprocess.Popen[bytes]]:
    """A worker process, which does not outlive the context."""
    # This process may have found the package through a path that its environment does not name.
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-P", "-m", "vaedeploy.engines.worker"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                with suppress(OSError):  # closing flushes to a process that has ended
                    stream.close()


def _read_lines(stream: Iterator[bytes], add: Callable[[str], None]) -> None:
    for line in stream:
        add(line.decode("utf-8", "replace"))


def _missing(backend: Backend, event: Missing) -> str:
    install = install_command(ENGINE_EXTRAS[backend])
    return f"{backend} cannot be used here: {event.package} cannot be imported ({event.reason}). Run: {install}"


def _death(code: int) -> str:
    """How a process of this exit code ended, as the end of a sentence."""
    if code >= 0:
        return f"ended with exit code {code} before the engine was built"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # some signals have no name, such as real-time ones
        name = f"signal {-code}"
    advice = ", as the system does when memory runs out: lower the profile's largest size, or free memory"
    return f"was killed by {name}{advice if name == 'SIGKILL' else ''}"


def _explain(failed: Failed, log: _Log, request: BuildRequest) -> str:
    """Why a build failed, as the end of a sentence: the likeliest cause, and TensorRT's last messages."""
    said = log.messages.quote()
    reason = "TensorRT made no engine" if failed.reason.startswith(POLYGRAPHYS_WORDS) else failed.reason
    if failed.shortage:
        what, remedy = failed.shortage
        return f"{what} ({failed.reason}). {remedy}, and build again"
    if node := PARSER.search(said):
        module = _module(Path(request.graph or ""), node["node"])
        return f"the parser refuses {node['operator']}, node {node['node']}{module}{said}"
    if OUT_OF_MEMORY.search(said + failed.reason):
        return f"{reason}; memory ran out: lower the largest batch or size in the profile{said}"
    return f"{reason}{said}"


def _module(graph: Path, name: str) -> str:
    """The PyTorch module that a node comes from, to append to its name; empty if it is not known."""
    node = next((node for node in ir.load(graph).graph if node.name == name), None)
    path = "" if node is None else module_path(node)
    return f", which is {path} in PyTorch" if path else ""
