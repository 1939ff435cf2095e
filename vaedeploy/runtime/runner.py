"""``Runner``: what every backend makes of a half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vaedeploy.runtime.device import Array


class Runner(Protocol):
    """One half, ready to run. Several threads may run it at the same time."""

    graph: Path
    inputs: list[str]
    outputs: list[str]

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, Array] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Array]:
        """The named outputs, each in a new array or in the one that ``results`` has; see ``EngineSession.run``."""
        ...
