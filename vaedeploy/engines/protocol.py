"""What the process that builds is asked, and what it says."""

from __future__ import annotations

import msgspec

from vaedeploy.values.kinds import Backend

Dims = list[int]


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to build. Without a ``graph``: only tell whether the backend is there.

    graph, out: files. compute_capability: such as "8.9". network_name: what the plan is to contain.
    input: the name of the graph's input. profiles: its (min, opt, max) shapes, each an optimisation profile.
    options: see ``profile.Options``. timing_cache: a file that is used and renewed; for ``tensorrt`` alone.
    """

    backend: Backend
    graph: str | None = None
    out: str = ""
    compute_capability: str = ""
    network_name: str = ""
    input: str = ""
    profiles: list[tuple[Dims, Dims, Dims]] = []
    options: dict[str, bool | int | str] = {}
    timing_cache: str | None = None


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The backend is there, in this version."""

    version: str


class Missing(msgspec.Struct, frozen=True, tag=True):
    """A package is not installed, or cannot be loaded."""

    package: str
    reason: str


class Advanced(msgspec.Struct, frozen=True, tag=True):
    """How much of the build is done, 0 to 1."""

    share: float


class Built(msgspec.Struct, frozen=True, tag=True):
    """The engine is written. tensors, layers: see ``manifest.EngineInfo``."""

    tensors: dict[str, str]
    layers: dict[str, int]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """There is no engine. shortage: see ``atomic.shortage``."""

    reason: str
    shortage: tuple[str, str] | None = None


Event = Ready | Missing | Advanced | Built | Failed
