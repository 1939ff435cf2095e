"""Runs a bundle's two halves: chooses the backend, falls back to the next one, and handles NaN in results."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, BundleError, EngineError, InputError, SizeError
from vaedeploy.runtime.candidate import Candidate
from vaedeploy.runtime.device import Array, OnDevice
from vaedeploy.runtime.rows.session import BoundedRunner, MemoryPlan
from vaedeploy.runtime.runner import Runner
from vaedeploy.system.gpu import FORKED, was_forked
from vaedeploy.system.processes import tell_of_fork
from vaedeploy.values.kinds import PARTS, Part, Precision

OnNan = Literal["rerun", "warn", "raise"]

log = logging.getLogger(__name__)


class Dispatch:
    """A bundle's two halves on the candidates that can run them. Several threads may call it at the same time.

    candidates: the ways to compute, the preferred one first; each opens a half when it is first needed.
    may_fall_back: whether another backend computes where the preferred one cannot open a half or does not take the
    size; otherwise the caller gets the error. on_nan: see ``VAE``.

    reruns: how many items were run again in float32.
    """

    def __init__(self, bundle: Bundle, candidates: Sequence[Candidate], may_fall_back: bool, on_nan: OnNan) -> None:
        self._bundle = bundle
        self._candidates = list(candidates)
        self._may_fall_back = may_fall_back
        self._on_nan = on_nan
        self._runners: dict[tuple[Candidate, Part], Runner] = {}
        self._logged: set[str] = set()
        self._closed = False
        self._warming = 0
        self.reruns = 0
        self._make_locks()
        tell_of_fork(self)

    @property
    def backend(self) -> str:
        """The backend that is tried first."""
        return self._candidates[0].backend

    @property
    def precision(self) -> Precision:
        """The precision of that backend."""
        return self._candidates[0].precision

    @property
    def on_gpu(self) -> bool:
        """Whether that backend computes on a CUDA device."""
        return self._candidates[0].on_gpu

    @property
    def ready(self) -> bool:
        """Whether both halves are loaded, and nothing is ``warming`` up."""
        with self._lock:
            return not self._warming and {part for _, part in self._runners} == set(PARTS)

    @contextmanager
    def warming(self) -> Iterator[None]:
        """Context in which this is not ``ready``."""
        with self._lock:
            self._warming += 1
        try:
            yield
        finally:
            with self._lock:
                self._warming -= 1

    def close(self) -> None:
        """Release everything that is open. Calls in progress finish; later calls raise InputError."""
        with self._lock:
            self._closed = True
            self._runners = {}

    def forked(self) -> None:
        """In a forked process: drop graphs on the CPU, which are loaded again when needed, and keep what used the GPU,
        which says why it cannot run.
        """
        self._make_locks()
        self._warming = 0  # the thread that warmed up is not in this process
        self._runners = {key: runner for key, runner in self._runners.items() if key[0].on_gpu}

    def _make_locks(self) -> None:
        self._lock = threading.Lock()
        # One for each half of a candidate: opening one does not hold up calls of the others.
        self._opening: dict[tuple[Candidate, Part], threading.Lock] = {}

    def run(
        self,
        part: Part,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, Array] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Array]:
        """Run a half, and rerun in float32 the items whose half-precision result has NaN or infinity.

        outputs: their names. The decoder's last one is ``finite``; the encoder's are latents, whose values are checked.
        inputs, results, after: see ``EngineSession.run``.
        """
        on_device = any(isinstance(value, OnDevice) for value in inputs.values())
        candidate, computed = self._run_first(part, outputs, inputs, results, after, on_device)
        finite = self._finite_items(computed)
        if finite.all():
            return computed
        what = f"{'decode' if part == 'decoder' else 'encode'} gave NaN or infinity"
        items = np.flatnonzero(~finite)
        where = f"in item {', '.join(map(str, items))} of a batch of {len(finite)} (bundle {self._bundle.path})"
        if self._on_nan == "rerun" and self._rerun(candidate, part, outputs, inputs, computed, items, on_device):
            log.warning("%s in %s %s; run again in fp32", what, candidate.precision, where)
            with self._lock:
                self.reruns += len(items)
            finite = self._finite_items(computed)
            if finite.all():
                return computed
        message = f"{what} {where}"
        if candidate.precision != "fp32" and self._on_nan != "rerun":
            message += f". It was computed in {candidate.precision}: on_nan='rerun' runs such items again in fp32"
        if self._on_nan == "raise":
            raise BackendError(message)
        log.warning(message)
        return computed

    def plan(self, batch: int, rows: int, columns: int) -> dict[Part, MemoryPlan]:
        """See ``VAE.plan``; rows, columns: of the latents."""
        candidate = next((c for c in self._candidates if not c.on_gpu), None)
        if candidate is None:
            raise BackendError(f"{self.backend} computes on the GPU, and memory is planned only on the host")
        plans: dict[Part, MemoryPlan] = {}
        for part in PARTS:
            runner = self._runner(candidate, part)
            if not isinstance(runner, BoundedRunner):
                raise BackendError(f"{candidate.backend} has its own device, and memory is planned only on the CPU")
            if not runner.half.exists:
                raise BackendError(runner.half.missing)
            plans[part] = runner.plan(batch, rows, columns)
        return plans

    def _run_first(
        self,
        part: Part,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, Array] | None,
        after: Sequence[Any],
        on_device: bool,
    ) -> tuple[Candidate, list[Array]]:
        """Run ``part`` on the first candidate that opens it and takes this size; return it and the outputs."""
        refused: set[Candidate] = set()
        while True:
            remaining = [c for c in self._candidates if c not in refused and c.takes(on_device)]
            if not remaining:
                raise BackendError(
                    f"{self.backend} takes only arrays in host memory. Copy the array to the host (torch: .cpu()), or "
                    "install a backend that runs on the GPU: vaedeploy doctor"
                )
            candidate, *others = remaining
            if candidate.on_gpu and was_forked():
                raise BackendError(FORKED)
            try:
                runner = self._runner(candidate, part)
            except (BackendError, EngineError) as error:
                next_backend = next((c.backend for c in others if c.backend != candidate.backend), None)
                if not self._may_fall_back or next_backend is None:
                    raise
                log.warning("%s cannot be used, so %s is used instead: %s", candidate.backend, next_backend, error)
                self._candidates = [c for c in self._candidates if c.backend != candidate.backend]
                continue
            try:
                return candidate, runner.run(outputs, inputs, results, after)
            except SizeError as error:
                # Engines of another precision are the same backend, so using them is no fallback.
                same_backend = bool(others) and others[0].backend == candidate.backend
                if not same_backend and not (self._may_fall_back and others):
                    raise
                if not same_backend:
                    self._warn_once(f"{others[0].backend} answers in place of {candidate.backend}: {error}")
                refused.add(candidate)

    def _rerun(
        self,
        candidate: Candidate,
        part: Part,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        computed: Sequence[Array],
        items: NDArray[np.intp],
        on_device: bool,
    ) -> bool:
        """Compute ``items`` again, on the first float32 candidate that can, and write the results into ``computed``.

        Returns False if no candidate can, or if ``candidate``, which computed them, is a float32 one itself.
        """
        if candidate.precision == "fp32":
            return False
        for exact in self._candidates:
            if exact.precision != "fp32" or not exact.takes(on_device):
                continue
            try:
                self._run_items(self._runner(exact, part), outputs, inputs, computed, items)
            except (BackendError, EngineError, SizeError) as error:
                log.warning("%s cannot run these items again in fp32: %s", exact.backend, error)
            else:
                return True
        return False

    @staticmethod
    def _run_items(
        runner: Runner,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        computed: Sequence[Array],
        items: NDArray[np.intp],
    ) -> None:
        for item in items.tolist():
            one_item = {name: array[item : item + 1] for name, array in inputs.items()}
            targets = {name: array[item : item + 1] for name, array in zip(outputs, computed, strict=True)}
            on_device = {name: target for name, target in targets.items() if isinstance(target, OnDevice)}
            for target, array in zip(targets.values(), runner.run(outputs, one_item, on_device), strict=True):
                if not isinstance(target, OnDevice):
                    target[...] = array

    def _finite_items(self, computed: Sequence[Array]) -> NDArray[np.bool_]:
        """(B,) bool: which items have no NaN or infinity. The decoder's graph says so, since uint8 cannot show it."""
        last = computed[-1]
        if not isinstance(last, OnDevice) and last.dtype == np.bool_:
            return np.asarray(last)
        latents = [array.on_host() if isinstance(array, OnDevice) else array for array in computed]
        finite = [np.isfinite(latent).all(axis=tuple(range(1, latent.ndim))) for latent in latents]
        return np.asarray(np.all(finite, axis=0))

    def _runner(self, candidate: Candidate, part: Part) -> Runner:
        key = candidate, part
        with self._lock:
            if runner := self._opened(key):
                return runner
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:
            with self._lock:
                if runner := self._opened(key):
                    return runner
            runner = candidate.open(part)
            self._check_contract(part, runner)
            if candidate.warning:
                self._warn_once(candidate.warning)
            with self._lock:
                self._opened(key)  # it may have been closed meanwhile
                self._runners[key] = runner
            return runner

    def _opened(self, key: tuple[Candidate, Part]) -> Runner | None:
        if self._closed:
            raise InputError(f"this VAE is closed; open it again: VAE({str(self._bundle.path)!r})")
        return self._runners.get(key)

    def _check_contract(self, part: Part, runner: Runner) -> None:
        """Raise BundleError unless ``runner`` takes and gives what the bundle's ``part`` must."""
        manifest = self._bundle.manifest
        interface = manifest.interface(part)
        inputs, outputs = [interface.input], list(interface.outputs)
        if runner.inputs != inputs or not set(outputs) <= set(runner.outputs):
            raise BundleError(
                f"{runner.graph} takes {runner.inputs} and gives {runner.outputs}; the {part} of this bundle must "
                f"take {inputs} and give {outputs}. Export it again: {manifest.export_command(self._bundle.path)}"
            )

    def _warn_once(self, message: str) -> None:
        with self._lock:
            if message in self._logged:
                return
            self._logged.add(message)
        log.warning(message)
