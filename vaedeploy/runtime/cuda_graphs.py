"""Runs of ONNX Runtime's CUDA provider as CUDA graphs, which launch all kernels of a run at once.

ONNX Runtime records a graph for each thread with the addresses of that run, and ignores those of later runs: with other
arrays bound, it would give the results of the first. So each size has arrays of its own here: inputs are copied into
them, and results out of them.

While a graph is recorded, CUDA refuses what other threads ask of it: on an H200, PyTorch's copy to the GPU failed with
"operation not permitted when stream is capturing". So graphs are for programs in which one thread uses the GPU.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vaedeploy.errors import BackendError
from vaedeploy.runtime.device import Array, Device, OnDevice, shape_of, tensor_of
from vaedeploy.values.interface import Tensor

__all__ = ["OPTION", "TURNS", "RecordingSession", "are_asked", "without"]

log = logging.getLogger(__name__)

OPTION = "enable_cuda_graph"
"""The provider's option."""

NOT_RECORDED = "-1"
"""The graph number with which ONNX Runtime records nothing and runs the nodes one by one."""

MOST_RECORDED = 16
"""The most graphs that a session records. ONNX Runtime drops none before the session is closed."""

TURNS = threading.Lock()
"""Held during each call of any session with graphs, and while one is opened, so that nothing runs during a recording.
"""

Run = Callable[[str, Sequence[str], Mapping[str, Array], Mapping[str, Array]], list[Any]]
"""Runs a session: the number of the graph, outputs, inputs and the arrays that results are written into."""


def are_asked(options: Mapping[str, str]) -> bool:
    """Whether the provider's options turn CUDA graphs on."""
    return str(options.get(OPTION, "0")).lower() in ("1", "true")


def without(options: Mapping[str, str]) -> dict[str, str]:
    """The provider's options with CUDA graphs off."""
    return {name: value for name, value in options.items() if name != OPTION}


@dataclass(frozen=True)
class _Recording:
    """A graph's number, and the arrays that it reads and writes."""

    number: str
    inputs: Mapping[str, OnDevice]
    results: Mapping[str, OnDevice]


class RecordingSession:
    """A session of ONNX Runtime that records a graph when a thread asks for the same outputs of a size again.

    A thread's first call of a size runs its nodes one by one: it shows the outputs' shapes, and threads that live for
    one call record nothing.

    session: opened with ``OPTION``. device: where it runs.
    """

    def __init__(self, session: Any, device: Device) -> None:
        self.session = session
        self._device = device
        self._shapes: dict[Hashable, dict[str, Tensor]] = {}  # of the results of the first calls
        self._recordings: dict[Hashable, _Recording | None] = {}  # None where it failed

    def run(
        self, run: Run, outputs: Sequence[str], inputs: Mapping[str, Array], targets: Mapping[str, Array]
    ) -> list[Any]:
        """The named outputs: the arrays that ``targets`` has for them, and new numpy arrays for the others.

        run: runs the session. ``TURNS`` must be held.
        """
        sizes = tuple((name, shape_of(array)) for name, array in inputs.items())
        key = threading.get_ident(), tuple(outputs), sizes
        with self._device.active():
            if recording := self._recording(key, inputs):
                try:
                    return self._launch(recording, run, outputs, inputs, targets)
                except BackendError as error:
                    log.warning("a run is not recorded as a CUDA graph: %s", str(error))
                    self._recordings[key] = None
            found = run(NOT_RECORDED, outputs, inputs, targets)
            if key not in self._shapes and len(self._shapes) < MOST_RECORDED:
                self._shapes[key] = {name: tensor_of(array) for name, array in zip(outputs, found, strict=True)}
            return found

    def _recording(self, key: Hashable, inputs: Mapping[str, Array]) -> _Recording | None:
        """The recording for a call; None for the first call of its kind, or where memory is short."""
        if key not in self._recordings and key in self._shapes:
            number = str(len(self._recordings) + 1)  # 0 is ONNX Runtime's own
            given = {name: tensor_of(array) for name, array in inputs.items()}
            try:
                made = [
                    {name: self._device.array(tensor) for name, tensor in tensors.items()}
                    for tensors in (given, self._shapes[key])
                ]
            except BackendError as error:
                log.info("no CUDA graph is recorded: %s", str(error))  # an error that is kept keeps what failed
                return None
            self._recordings[key] = _Recording(number, *made)
        return self._recordings.get(key)

    def _launch(
        self,
        recording: _Recording,
        run: Run,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        targets: Mapping[str, Array],
    ) -> list[Any]:
        for name, array in inputs.items():
            recording.inputs[name].copy_from(array)
        run(recording.number, outputs, recording.inputs, recording.results)
        found: list[Any] = []
        for name in outputs:
            place, target = recording.results[name], targets.get(name)
            if isinstance(target, OnDevice):
                target.copy_from(place)
            elif target is not None:
                place.copy_to(target)
            found.append(place.on_host() if target is None else target)
        return found
