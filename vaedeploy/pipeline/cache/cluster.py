"""A Ray cluster: an existing one, or one of this machine alone, which ends with the job. Ray is kept quiet."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vaedeploy.errors import BackendError, InputError
from vaedeploy.system.interrupts import stop_if_interrupted
from vaedeploy.system.machine import usable_cores
from vaedeploy.system.oserrors import reason
from vaedeploy.system.progress import Progress
from vaedeploy.system.text import whole_number

LOCAL = "local"
"""The address with which Ray starts a cluster of this machine."""

AUTO = "auto"
"""The address of the cluster that ``ray start`` started on this machine."""

VARIABLE = "RAY_ADDRESS"
"""The environment variable that names a cluster. ``ray job submit`` sets it."""

OBJECTS = 100 * 2**20
"""Bytes of Ray's object store on this machine, near the least that Ray takes: only shards' names pass through it."""

STATISTICS = "RAY_USAGE_STATS_ENABLED"
"""The environment variable that keeps Ray from sending statistics to its makers."""

MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""Environment variables about the authentication of a cluster. Ray itself sets the first."""

PATIENCE = 5
"""Seconds within which a cluster's port must answer. Ray itself tries for a minute, and may then end this process."""

MOMENT = 0.02
"""The longest, in seconds, that SIGTERM has Ray's handler."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster. address: its IP address. cores, gpus: how many Ray has there, busy ones included."""

    address: str
    cores: int
    gpus: int


def check_address(address: str | bool) -> None:
    """Raise InputError for what cannot be the address of a cluster, ModuleNotFoundError where Ray is not installed."""
    import ray  # noqa: F401

    if isinstance(address, bool) or address in (LOCAL, AUTO):
        return
    if "://" in address:
        raise InputError(
            f"{address} is an address of Ray's client or of its dashboard. Give host:port of the cluster, such as "
            "10.0.0.1:6379, and run this on one of its machines (ray job submit does)"
        )
    host, _, port = address.rpartition(":")
    if not (host and 0 < (whole_number(port) or 0) < 65536):
        raise InputError(f"{address!r} is not the address of a Ray cluster; give host:port, such as 10.0.0.1:6379")


@contextmanager
def cluster(address: str | bool, progress: Progress) -> Iterator[None]:
    """Context of a connection to a cluster. An existing connection of this process is used, and kept.

    address: host:port, or "auto". True: the one that ``VARIABLE`` names, or else a cluster of this machine, which ends
    with the context. Raises BackendError where there is none, or it cannot be started.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    if isinstance(address, bool):
        address = os.environ.get(VARIABLE) or LOCAL
        check_address(address)
    with ExitStack() as stack:
        arguments: dict[str, Any] = {}
        what = f"Joining the Ray cluster at {address}"
        if address == LOCAL:
            what = "Starting Ray on this machine"
            folder = stack.enter_context(_folder())
            arguments = {
                "num_cpus": usable_cores(),
                "include_dashboard": False,
                "object_store_memory": OBJECTS,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
            }
        elif address != AUTO:
            _check_port(address)
        progress(what, 0, 1)
        # A signal raises its exception in the main thread, and would leave processes behind if it cut Ray's start or
        # end short. So both run in another thread, which lives as long as the cluster: the system ends Ray's processes
        # with the thread that started them.
        thread = stack.enter_context(ThreadPoolExecutor(1, "ray"))
        stack.callback(lambda: _result(thread.submit(ray.shutdown)))
        _result(thread.submit(_connect, address, **arguments))
        progress(what, 1, 1)
        try:
            yield
        except KeyboardInterrupt:
            stop_if_interrupted()  # Ray raises it instead of Stopped, which names the signal
            raise


def _result(future: Future[None]) -> None:
    """Wait for Ray's start or end, and keep SIGTERM's handler: Ray's start sets one that aborts the process, and its
    end removes it.
    """
    handler = signal.getsignal(signal.SIGTERM)
    ours = threading.current_thread() is threading.main_thread() and handler is not None
    done = False
    while not done:
        done = bool(wait([future], MOMENT).done)
        if ours:
            signal.signal(signal.SIGTERM, handler)
    future.result()


def nodes() -> list[Node]:
    """The machines of the cluster that are alive."""
    import ray

    return [
        Node(node["NodeManagerAddress"], int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]


def _check_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except OSError as error:
        raise BackendError(
            f"no Ray cluster answers at {address}: {reason(error)}. Give the address that ray start --head printed"
        ) from error


@contextmanager
def _folder() -> Iterator[str]:
    """Context with a folder for what Ray writes. At its end the processes that write there are ended, and it is
    removed.
    """
    # Ray puts sockets there, whose paths have at most 107 characters: TMPDIR may be too long.
    with TemporaryDirectory(prefix="ray-", dir=None if os.name == "nt" else "/tmp", ignore_cleanup_errors=True) as path:
        try:
            yield path
        finally:
            _end_writers(path)


def _end_writers(folder: str) -> None:
    """End the processes whose output goes into ``folder``. After a start that failed, Ray leaves some for a minute."""
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if (place / "fd/1").readlink().is_relative_to(folder):
                os.kill(int(place.name), signal.SIGKILL)


@cache
def _token() -> str:
    """The token of the clusters that this process starts. Ray keeps the first one that it reads."""
    return secrets.token_hex(32)


def _has_token() -> bool:
    """Whether the user has a token. If not, Ray would write one to the home folder, and so demand it in the user's next
    clusters too.
    """
    return TOKEN in os.environ or TOKEN_FILE in os.environ or (Path.home() / ".ray/auth_token").exists()


def _connect(address: str, **arguments: Any) -> None:
    import ray

    before = {name: os.environ.get(name) for name in (STATISTICS, MODE, TOKEN)}
    os.environ[STATISTICS] = "0"
    if address == LOCAL and not _has_token():
        os.environ[TOKEN] = _token()
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **arguments)
    except Exception as error:
        if address == LOCAL:
            raise BackendError(
                f"cannot start Ray on this machine: {str(error).rstrip('.')}. Ray itself waits for 30 seconds, too few "
                "where others have all cores. --workers without --ray encodes here as well"
            ) from error
        raise BackendError(
            f"cannot join the Ray cluster at {address}: {error}. If it is guarded by a token, set RAY_AUTH_MODE=token"
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
