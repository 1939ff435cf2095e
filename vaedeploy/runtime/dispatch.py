"""A bundle's two halves on whatever can compute them: who does, who steps in, and what is done about NaN."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, BundleError, EngineError, InputError, SizeError
from vaedeploy.runtime.backends import Candidate, Runner
from vaedeploy.runtime.device import Array, OnDevice
from vaedeploy.values.kinds import Part

OnNan = Literal["rerun", "warn", "raise"]

logger = logging.getLogger("vaedeploy")


class Dispatch:
    """See the module. Each half is opened when it is first needed; several threads may call.

    candidates: the preferred first. may_fall_back: the next one answers where one cannot open a half, or takes no such
    size; without, the error is the caller's. on_nan: see ``VAE``.
    """

    def __init__(self, bundle: Bundle, candidates: Sequence[Candidate], may_fall_back: bool, on_nan: OnNan) -> None:
        self._bundle = bundle
        self._candidates = list(candidates)
        self._may_fall_back = may_fall_back
        self._on_nan = on_nan
        self._runners: dict[tuple[Candidate, Part], Runner] = {}
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def backend(self) -> str:
        """Who is asked first."""
        return self._candidates[0].backend

    def close(self) -> None:
        """Let go of everything that is open. Calls that are under way end well; later ones raise InputError."""
        with self._lock:
            self._closed = True
            self._runners = {}

    def run(
        self,
        part: Part,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, OnDevice] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Array]:
        """Run a half, and again in float32 those items that half precision could not hold.

        outputs: the one that tells which items are finite is the last (the encoder's latent tells it itself).
        inputs, results, after: as ``EngineSession.run`` has them.
        """
        on_device = any(isinstance(value, OnDevice) for value in inputs.values())
        candidate, found = self._first(part, outputs, inputs, results, after, on_device)
        finite = self._finite_items(found)
        if finite.all():
            return found
        what = f"{'decode' if part == 'decoder' else 'encode'} gave NaN or infinity"
        items = np.flatnonzero(~finite)
        where = f"in item {', '.join(map(str, items))} of a batch of {len(finite)} (bundle {self._bundle.path})"
        if self._on_nan == "rerun" and self._again(candidate, part, outputs, inputs, found, items, on_device):
            logger.warning("%s in %s %s; run again in fp32", what, candidate.precision, where)
            finite = self._finite_items(found)
            if finite.all():
                return found
        message = f"{what} {where}"
        if candidate.precision != "fp32" and self._on_nan != "rerun":
            message += f". It was computed in {candidate.precision}: on_nan='rerun' runs such items again in fp32"
        if self._on_nan == "raise":
            raise BackendError(message)
        logger.warning(message)
        return found

    def _first(
        self,
        part: Part,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, OnDevice] | None,
        after: Sequence[Any],
        on_device: bool,
    ) -> tuple[Candidate, list[Array]]:
        """The outputs of the first candidate that opens ``part`` and takes this size, and which one it was."""
        refused: set[Candidate] = set()
        while True:
            left = [c for c in self._candidates if c not in refused and c.takes(on_device)]
            if not left:
                raise BackendError(
                    f"{self.backend} takes arrays of the host alone. Copy it there (torch: .cpu()), or install a "
                    "backend that runs on the GPU: vaedeploy doctor"
                )
            candidate, *others = left
            try:
                runner = self._runner(candidate, part)
            except (BackendError, EngineError) as error:
                elsewhere = next((c.backend for c in others if c.backend != candidate.backend), None)
                if not self._may_fall_back or elsewhere is None:
                    raise
                logger.warning("%s cannot be used, so %s answers: %s", candidate.backend, elsewhere, error)
                self._candidates = [c for c in self._candidates if c.backend != candidate.backend]
                continue
            try:
                return candidate, runner.run(outputs, inputs, results, after)
            except SizeError as error:
                # Engines of another precision are the same backend, which is what was asked for.
                own = bool(others) and others[0].backend == candidate.backend
                if not own and not (self._may_fall_back and others):
                    raise
                if not own:
                    self._tell_once(f"{others[0].backend} answers in place of {candidate.backend}: {error}")
                refused.add(candidate)

    def _again(
        self,
        candidate: Candidate,
        part: Part,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        found: Sequence[Array],
        items: NDArray[np.intp],
        on_device: bool,
    ) -> bool:
        """Put into ``found`` what the first one in float32 that can gives for ``items``; False where none could, or
        ``candidate`` was one.
        """
        if candidate.precision == "fp32":
            return False
        for exact in self._candidates:
            if exact.precision != "fp32" or not exact.takes(on_device):
                continue
            try:
                self._run_items(self._runner(exact, part), outputs, inputs, found, items)
            except (BackendError, EngineError, SizeError) as error:
                logger.warning("%s cannot run them again in fp32: %s", exact.backend, error)
            else:
                return True
        return False

    @staticmethod
    def _run_items(
        runner: Runner,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        found: Sequence[Array],
        items: NDArray[np.intp],
    ) -> None:
        for item in items.tolist():
            one = {name: value[item : item + 1] for name, value in inputs.items()}
            places = {name: array[item : item + 1] for name, array in zip(outputs, found, strict=True)}
            kept = {name: place for name, place in places.items() if isinstance(place, OnDevice)}
            for place, better in zip(places.values(), runner.run(outputs, one, kept), strict=True):
                if not isinstance(place, OnDevice):
                    place[...] = better

    def _finite_items(self, found: Sequence[Array]) -> NDArray[np.bool_]:
        """(B,) bool: which items have no NaN or infinity. The decoder's graph tells, since bytes do not show it."""
        last = found[-1]
        if not isinstance(last, OnDevice) and last.dtype == np.bool_:
            return np.asarray(last)
        latent = found[0] if not isinstance(found[0], OnDevice) else found[0].on_host()
        return np.asarray(np.isfinite(latent).all(axis=tuple(range(1, latent.ndim))))

    def _runner(self, candidate: Candidate, part: Part) -> Runner:
        with self._lock:
            if self._closed:
                raise InputError(f"this VAE is closed; open it again: VAE({str(self._bundle.path)!r})")
            key = candidate, part
            if key not in self._runners:
                runner = candidate.open(part)
                self._check_contract(part, runner)
                self._runners[key] = runner
            return self._runners[key]

    def _check_contract(self, part: Part, runner: Runner) -> None:
        manifest = self._bundle.manifest
        interface = manifest.interface(part)
        inputs, outputs = [interface.input], list(interface.outputs)
        if runner.inputs != inputs or not set(outputs) <= set(runner.outputs):
            raise BundleError(
                f"{runner.graph} takes {runner.inputs} and gives {runner.outputs}; the {part} of this bundle must "
                f"take {inputs} and give {outputs}. Export it again: {manifest.export_command(self._bundle.path)}"
            )

    def _tell_once(self, message: str) -> None:
        with self._lock:
            if message in self._told:
                return
            self._told.add(message)
        logger.warning(message)
