"""The messages between the build process and its parent: one request, and the events that follow it."""

from __future__ import annotations

import msgspec

from vaedeploy.values.kinds import Backend

Dims = list[int]


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to build. Without a ``graph``, the process only says whether the backend can be imported.

    graph: the file to build from. out: the file to write the engine to. compute_capability: such as "8.9".
    network_name: the network's name, which the engine contains. input: the name of the graph's input.
    profiles: the input's (min, opt, max) shapes, for each optimisation profile. options: see ``profile.Options``.
    timing_cache: a file that is read and updated; for ``tensorrt`` alone.
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
    """The backend was imported, and has this version."""

    version: str


class Missing(msgspec.Struct, frozen=True, tag=True):
    """A package cannot be imported: it is not installed, or does not load."""

    package: str
    reason: str


class Advanced(msgspec.Struct, frozen=True, tag=True):
    """How much of the build is done, 0 to 1."""

    share: float


class Built(msgspec.Struct, frozen=True, tag=True):
    """The engine was written. tensors, layers: see ``manifest.EngineInfo``."""

    tensors: dict[str, str]
    layers: dict[str, int]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The build failed. shortage: see ``oserrors.shortage``."""

    reason: str
    shortage: tuple[str, str] | None = None


Event = Ready | Missing | Advanced | Built | Failed
