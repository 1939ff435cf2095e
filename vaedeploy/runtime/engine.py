"""Runs one half of a VAE on TensorRT engines: chooses the engine, cuts the batch, and places the results."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vaedeploy.errors import BackendError, SizeError
from vaedeploy.runtime.device import Array, Device, Plan, shape_of
from vaedeploy.runtime.lane import Lane, Work
from vaedeploy.runtime.pool import Pool
from vaedeploy.runtime.routes import KEPT_ROUTES, find_route
from vaedeploy.system.gpu import FORKED
from vaedeploy.system.processes import native_call, never_destroyed_in_child

if TYPE_CHECKING:
    from vaedeploy.runtime.routes import Half


CONTEXTS = 4
"""How many calls of one engine may run at once; further calls wait. Each has activation memory of its own."""


class EngineSession:
    """The engines of one half, ready to run. Several threads may call it at the same time, but not a process that was
    forked from the one that made it.

    load: checks an engine, given its file in the bundle, and opens it on ``device``. Raises EngineError if a file is
    not what the manifest says, BackendError if it cannot be loaded.
    """

    def __init__(self, half: Half, device: Device, load: Callable[[str], Plan]) -> None:
        self.graph = half.bundle.path / half.engines[0]
        self.inputs = [half.interface.input]
        self.outputs = list(half.interface.outputs)
        self._half = half
        self._pixels = half.interface.pixels
        self._device = device
        self._load = load
        self._route = lru_cache(KEPT_ROUTES)(partial(find_route, half, half.slots))
        self._pools: dict[str, Pool[Lane]] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()
        never_destroyed_in_child(self)
        with native_call(), device.active():
            for name in half.engines:
                self._pool(name)  # an engine that cannot be loaded fails now, when another backend can still be taken

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, Array] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Array]:
        """The named outputs: the arrays that ``results`` has for them, new host arrays for the others.

        inputs: the one input, in host or device memory. results: arrays to fill with outputs, in host or device memory,
        contiguous and of the output's shape and dtype.
        after: streams (objects with ``__cuda_stream__``) whose work is waited for.

        Raises SizeError, naming the ranges of the engines and the commands that add one, if no engine takes the size,
        and BackendError in a forked process.
        """
        if os.getpid() != self._process:
            raise BackendError(FORKED)
        ((name, batch),) = inputs.items()
        items, height, width = self._pixels(shape_of(batch))
        try:
            route = self._route(items, height, width)
        except SizeError as error:
            raise SizeError(f"{error}. {self._advice(height, width)}") from error
        arrays = {
            output: results[output] if results and output in results else np.empty(tensor.shape, tensor.dtype)
            for output, tensor in route.outputs.items()
            if output in outputs
        }
        for piece, piece_outputs in route.pieces:
            part = slice(piece.start, piece.stop)
            work = Work(
                index=piece.slot.index,
                name=name,
                given=batch[part],
                outputs=piece_outputs,
                results={output: array[part] for output, array in arrays.items()},
            )
            pool = self._pool(piece.slot.engine)
            key = work.index, shape_of(work.given)
            with native_call(), self._device.active(), pool.borrow(key) as lane:
                lane.run(work, after)
        return [arrays[output] for output in outputs]

    def _pool(self, name: str) -> Pool[Lane]:
        """The lanes of an engine, which is checked and loaded at the first call."""
        with self._lock:
            if name not in self._pools:
                plan, device = self._load(name), self._device
                # The lambda must not refer to ``self``: that cycle would hold gigabytes until garbage is collected.
                self._pools[name] = Pool(lambda: Lane(device, plan), CONTEXTS)
            return self._pools[name]

    def _advice(self, height: int, width: int) -> str:
        """How to add a size that no engine takes, in pixels. One item is enough: larger batches are cut."""
        path, profile = self._half.bundle.path, self._half.bundle.manifest.engines[self._half.engines[0]].profile
        own, line = f"my-{profile}", f"{height}x{width} = {{ height = {height}, width = {width} }}"
        return (
            f"To add it, make a profile of your own (vaedeploy profiles --init {own} --profiles DIR), write {line} "
            f"under [shapes] there, and run: vaedeploy build {path} --profile {own} --profiles DIR --backend "
            f"{self._half.backend}"
        )
