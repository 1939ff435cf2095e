"""A Ray cluster of two nodes on this machine, and the processes of clusters."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PATIENCE = 300
"""Seconds after which something that was to happen has not."""


def missing() -> str | None:
    """Why there can be no cluster here; None where there can."""
    if find_spec("ray") is None:
        return "this Python has no Ray: run make test-ray, which makes an environment that has it"
    return None if Path("/proc/self/task").exists() else "finds processes in /proc"


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes with a core each, which has its ``address``."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1, include_dashboard=False)
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.01)


def encoders() -> set[int]:
    """The processes of actors that are at work."""
    return {process for process, name in _names().items() if name.startswith("ray::_Encoder")}


def processes() -> set[int]:
    """All processes of clusters of Ray that are alive."""
    return {
        process
        for process, name in _names().items()
        if name.startswith("ray::") or "/ray/" in name.split("\0")[0] or "/ray/_private" in name
    }


def _names() -> dict[int, str]:
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal() and int(place.name) != os.getpid():
            try:
                found[int(place.name)] = (place / "cmdline").read_text(errors="replace")  # empty for one that has ended
            except OSError:
                continue
    return found
