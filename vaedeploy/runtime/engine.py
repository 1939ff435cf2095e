"""One half of a VAE on TensorRT engines: which engine answers a call, in how many pieces, and where results go."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, SizeError
from vaedeploy.gpu import FORKED
from vaedeploy.identity import check_engine
from vaedeploy.manifest import Backend, Part
from vaedeploy.runtime.fit import Piece, Slot, cut
from vaedeploy.runtime.lane import Array, Device, Lane, OnDevice, Plan, Tensor, Work, shape_of
from vaedeploy.runtime.pool import Pool

CONTEXTS = 4
"""Calls of one engine that run at once; more wait. Each has its own activation memory."""


KEPT_ROUTES = 256
"""Sizes whose routes are remembered: finding one takes longer than all else that is done around a call."""


@dataclass(frozen=True)
class Half:
    """What a part of a bundle takes and gives, and the engines for it that fit this GPU: their files in the bundle.

    only: the number of the one optimisation profile to use; None: all.
    """

    bundle: Bundle
    part: Part
    backend: Backend
    engines: tuple[str, ...]
    only: int | None = None

    @property
    def slots(self) -> list[Slot]:
        """Every optimisation profile of every engine, or the chosen one."""
        infos = ((name, self.bundle.manifest.engines[name]) for name in self.engines)
        return [
            Slot(name, index, shape)
            for name, info in infos
            for index, shape in enumerate(info.identity.shapes.values())
            if self.only in (None, index)
        ]

    @property
    def inputs(self) -> list[str]:
        """The name of the one input."""
        if self.part == "decoder":
            return ["latent"]
        return ["image_u8" if self.bundle.manifest.image_input == "uint8" else "image"]

    def pixels(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, height, width) in pixels, for an input of that shape."""
        if self.part == "decoder":
            factor = self.bundle.manifest.latent.factor
            return shape[0], shape[2] * factor, shape[3] * factor
        height, width = shape[1:3] if self.inputs == ["image_u8"] else shape[2:4]
        return shape[0], height, width

    def outputs(self, batch: int, height: int, width: int) -> dict[str, Tensor]:
        """Every output for that many items of that many pixels."""
        single, byte, truth = np.dtype(np.float32), np.dtype(np.uint8), np.dtype(np.bool_)
        if self.part == "decoder":
            return {
                "image": Tensor((batch, 3, height, width), single),
                "image_u8": Tensor((batch, height, width, 3), byte),
                "finite": Tensor((batch,), truth),
            }
        latent = self.bundle.manifest.latent
        small = Tensor((batch, latent.channels, height // latent.factor, width // latent.factor), single)
        return dict.fromkeys(["latent_mean", "latent_std"] if latent.sampled else ["latent"], small)


@dataclass(frozen=True)
class Route:
    """How a size is answered: every output of the whole, and the pieces of the batch, each with its own outputs."""

    outputs: Mapping[str, Tensor]
    pieces: Sequence[tuple[Piece, Mapping[str, Tensor]]]


def find_route(half: Half, slots: Sequence[Slot], batch: int, height: int, width: int) -> Route:
    """Raises SizeError where ``slots`` do not take that size."""
    pieces = [(p, half.outputs(p.stop - p.start, height, width)) for p in cut(slots, batch, height, width)]
    return Route(half.outputs(batch, height, width), pieces)


class EngineSession:
    """The engines of one half, ready to run. May be called from several threads at once, but not from a process that
    was forked from the one that made it.

    load: opens an engine by its file in the bundle, on ``device``. verify_hashes: prove the file's sha256 first.
    Raises EngineError where a file is not what the manifest says, BackendError where it cannot be loaded.
    """

    def __init__(self, half: Half, device: Device, load: Callable[[str], Plan], verify_hashes: bool = True) -> None:
        self.graph = half.bundle.path / half.engines[0]
        self.inputs = half.inputs
        self.outputs = list(half.outputs(1, 1, 1))
        self._half = half
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
            route = self._route(*self._half.pixels(shape_of(given)))
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
