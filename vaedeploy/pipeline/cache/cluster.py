"""A cluster of Ray: one that is there, or one of this machine alone, which ends with the job. Ray is kept quiet."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vaedeploy.errors import BackendError, InputError
from vaedeploy.runtime.onnxruntime_cpu import usable_cores
from vaedeploy.system.oserrors import reason
from vaedeploy.system.progress import Progress

LOCAL = "local"
"""The address with which Ray starts a cluster of this machine."""

AUTO = "auto"
"""The address of the cluster that ``ray start`` started on this machine."""

VARIABLE = "RAY_ADDRESS"
"""The environment variable that names a cluster. ``ray job submit`` sets it."""

OBJECTS = 100 * 2**20
"""Bytes of Ray's object store on this machine, near the least that it takes: only names of shards pass through it."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without it Ray warns, and hides GPUs from what asks for none
}
"""Environment variables of a cluster that is started here."""

PATIENCE = 5
"""Seconds in which a cluster's port is to answer. Ray itself tries for a minute, and may then end this process."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster. address: its IP address. cores, gpus: that Ray gives away on it, busy ones included."""

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
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"{address!r} is not the address of a Ray cluster; give host:port, such as 10.0.0.1:6379")


@contextmanager
def cluster(address: str | bool, progress: Progress) -> Iterator[None]:
    """Context of a connection to a cluster. A connection that this process has already is used, and kept.

    address: host:port, or "auto". True: what ``VARIABLE`` says, and else a cluster of this machine, which ends with the
    context. Raises BackendError where there is none, or it cannot be started.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    if isinstance(address, bool):
        address = os.environ.get(VARIABLE) or LOCAL
        check_address(address)
    temporary = None
    try:
        if address == LOCAL:
            what = "Starting Ray on this machine"
            progress(what, 0, 1)
            # Ray puts sockets there, whose paths may have 107 characters: TMPDIR may be too long.
            temporary = tempfile.mkdtemp(prefix="ray-", dir=None if os.name == "nt" else "/tmp")
            _connect(
                address=LOCAL,
                num_cpus=usable_cores(),
                include_dashboard=False,
                object_store_memory=OBJECTS,
                _node_ip_address="127.0.0.1",
                _temp_dir=temporary,
            )
            progress(what, 1, 1)
        else:
            _check_port(address)
            _connect(address=address)
        yield
    finally:
        ray.shutdown()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def nodes() -> list[Node]:
    """The machines of the cluster that are alive."""
    import ray

    return [
        Node(node["NodeManagerAddress"], int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]


def _check_port(address: str) -> None:
    if address == AUTO:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except OSError as error:
        raise BackendError(
            f"no Ray cluster answers at {address}: {reason(error)}. Give the address that ray start --head printed"
        ) from error


def _connect(**arguments: Any) -> None:
    import ray

    before = {name: os.environ.get(name) for name in QUIET}
    handler = signal.getsignal(signal.SIGTERM)
    os.environ.update(QUIET)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)
    except SystemExit as error:
        if error.code != signal.SIGTERM:  # with which Ray's own handler answers the signal
            raise
        _restore(handler)
        signal.raise_signal(signal.SIGTERM)
        raise
    except Exception as error:
        verb = "start Ray on this machine" if arguments["address"] == LOCAL else f"join Ray at {arguments['address']}"
        raise BackendError(f"cannot {verb}: {error}") from error
    finally:
        _restore(handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _restore(handler: Any) -> None:
    """Give SIGTERM back its handler: Ray puts one of its own in its place, which exits with another code."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
