"""One half of a VAE on TensorRT engines: which engine answers a call, in how many pieces, and where results go."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vaedeploy.bundle.engines import check_engine
from vaedeploy.errors import BackendError, SizeError
from vaedeploy.runtime.device import Array, Device, OnDevice, Plan, shape_of
from vaedeploy.runtime.lane import Lane, Work
from vaedeploy.runtime.pool import Pool
from vaedeploy.runtime.routes import KEPT_ROUTES, find_route
from vaedeploy.system.gpu import FORKED

if TYPE_CHECKING:
    from vaedeploy.runtime.routes import Half


CONTEXTS = 4
"""Calls of one engine that run at once; more wait. Each has its own activation memory."""


class EngineSession:
    """The engines of one half, ready to run. May be called from several threads at once, but not from a process that
    was forked from the one that made it.

    load: opens an engine by its file in the bundle, on ``device``. verify_hashes: prove the file's sha256 first.
    Raises EngineError where a file is not what the manifest says, BackendError where it cannot be loaded.
    """

    def __init__(self, half: Half, device: Device, load: Callable[[str], Plan], verify_hashes: bool = True) -> None:
        self.graph = half.bundle.path / half.engines[0]
        self.inputs = [half.interface.input]
        self.outputs = list(half.interface.outputs)
        self._half = half
        self._pixels = half.interface.pixels
        self._device = device
        self._load = load
        self._verify_hashes = verify_hashes
        self._route = lru_cache(KEPT_ROUTES)(partial(find_route, half, half.slots))
        self._pools: dict[str, Pool[Lane]] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()
        with device.active():
            for name in half.engines:
                self._pool(name)  # to fail now, where another backend can still be taken

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, OnDevice] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Array]:
        """The named outputs: arrays of the host's in memory of their own, or what ``results`` has for them.

        inputs: the one input, of the host or in device memory. results: device memory for outputs that are to stay
        there. after: streams (with ``__cuda_stream__``) whose work is waited for.

        Raises SizeError, naming the ranges that there are and what adds one, where no engine takes the size.
        """
        if os.getpid() != self._process:
            raise BackendError(FORKED)
        ((name, given),) = inputs.items()
        try:
            route = self._route(*self._pixels(shape_of(given)))
        except SizeError as error:
            raise SizeError(f"{error}. {self._advice()}") from error
        made = {
            output: (results or {}).get(output) or np.empty(tensor.shape, tensor.dtype)
            for output, tensor in route.outputs.items()
            if output in outputs
        }
        for piece, every in route.pieces:
            items = slice(piece.start, piece.stop)
            work = Work(
                index=piece.slot.index,
                name=name,
                given=given[items],
                outputs=every,
                results={output: array[items] for output, array in made.items()},
            )
            pool = self._pool(piece.slot.engine)
            with self._device.active(), pool.borrow((work.index, shape_of(work.given))) as lane:
                lane.run(work, after)
        return [made[output] for output in outputs]

    def _pool(self, name: str) -> Pool[Lane]:
        with self._lock:
            if name not in self._pools:
                check_engine(self._half.bundle, name, verify_hash=self._verify_hashes)
                plan, device = self._load(name), self._device
                # Not over ``self``: a cycle would keep gigabytes until the collector looks.
                self._pools[name] = Pool(lambda: Lane(device, plan), CONTEXTS)
            return self._pools[name]

    def _advice(self) -> str:
        path, profile = self._half.bundle.path, self._half.bundle.manifest.engines[self._half.engines[0]].profile
        return (
            f"To add a size, put it under shapes in a profile of your own (vaedeploy profiles --init my-{profile} "
            f"--profiles DIR), and run: vaedeploy build {path} --profile my-{profile} --profiles DIR --backend "
            f"{self._half.backend}"
        )
