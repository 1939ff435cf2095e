"""One half on the CPU that stays within a budget of memory: whole where that fits, else by rows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.rows import Piece, RowsTable, decode_rows
from vaedeploy.errors import BackendError, InputError
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.runtime.device import Array, shape_of
from vaedeploy.runtime.failures import failures_explained, is_out_of_memory
from vaedeploy.runtime.rows.budget import Budget
from vaedeploy.runtime.rows.plan import Plan, make_plan, untiled_bytes
from vaedeploy.runtime.rows.store import Workspace
from vaedeploy.runtime.rows.strips import Run, RunPiece
from vaedeploy.runtime.runner import Runner
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import Part

__all__ = ["BoundedRunner", "MemoryPlan", "RowsHalf", "Whole"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryPlan:
    """What a call takes.

    bytes: at its peak, beyond the open VAE and the arrays that the caller gives and gets. way: "untiled" for the whole
    graph at once, "rows" for strips of it. disk: bytes of files in the VAE's workspace at the peak.
    again: operations that are computed again, as a share of all.
    least: the fewest bytes that a call of this size can take. fits: whether the VAE's ``max_memory`` allows it; a call
    that does not fit raises InputError.
    """

    bytes: int
    way: Literal["untiled", "rows"]
    disk: int
    again: float
    least: int
    fits: bool


class RowsHalf:
    """The rows form of a half in an open bundle."""

    def __init__(
        self,
        bundle: Bundle,
        part: Part,
        threads: int | None = None,
        verify_hashes: bool = True,
        progress: Progress = silent,
        workspace: Workspace | None = None,
    ) -> None:
        self.bundle, self.part, self.threads, self.verify_hashes = bundle, part, threads, verify_hashes
        self._progress, self._workspace = progress, workspace
        self._plans: dict[tuple[int, int, int], Plan] = {}

    @property
    def exists(self) -> bool:
        """Whether the bundle has this form of the half."""
        return self.part in self.bundle.manifest.rows

    @cached_property
    def table(self) -> RowsTable:
        """The pieces. Raises BundleError where they cannot be read, or are not of this half."""
        name = self.bundle.manifest.rows[self.part]
        table = decode_rows(self.bundle.read(name, self.verify_hashes), str(self.bundle.path / name))
        interface = self.bundle.manifest.interface(self.part)
        outputs = [output for output in interface.outputs if output != "finite"]
        factor = self.bundle.manifest.latent.factor
        if (table.part, table.input, list(table.outputs), table.factor) != (
            self.part,
            interface.input,
            outputs,
            factor,
        ):
            self.bundle.refuse({name: f"takes {table.input} and gives {table.outputs}, which the {self.part} does not"})
        return table

    def plan(self, rows: int, columns: int, budget: int) -> Plan:
        """The plan for an item with so many rows and columns of latents within ``budget`` bytes, or the least one."""
        key = rows, columns, budget
        if key not in self._plans:
            if len(self._plans) > 64:
                self._plans.clear()
            self._plans[key] = make_plan(self.table, rows, columns, budget, self._workspace is not None)
        return self._plans[key]

    def needs(self, batch: int, rows: int, columns: int) -> tuple[int, int]:
        """Bytes that a batch of so many rows and columns of latents takes at once, and the fewest that it can take."""
        untiled = untiled_bytes(self.table, rows, columns, batch)
        return untiled, min(untiled, self.plan(rows, columns, 0).bytes)

    def run(
        self,
        plan: Plan,
        outputs: Sequence[str],
        batch: NDArray[Any],
        given: Mapping[str, NDArray[Any]] | None = None,
    ) -> list[NDArray[Any]]:
        """The named outputs for a batch, item by item: the arrays of ``given``, and new ones for the others."""
        results = dict(given or {})
        for name in self.table.outputs:
            if name in outputs and name not in results:
                cut = plan.layout.cuts[name]
                _, *shape = cut.at(plan.layout.rows, plan.layout.columns)
                results[name] = np.empty((len(batch), *shape), cut.dtype)
        finite = np.empty(len(batch), np.bool_)
        done, factor = 0.0, self.table.factor
        what = f"The {self.part}, {plan.layout.rows * factor}x{plan.layout.columns * factor} by rows"

        def advance(share: float) -> None:
            nonlocal done
            self._progress(what, done, len(batch))
            done = min(done + share, len(batch))

        for index in range(len(batch)):
            run = Run(plan, self._open, advance, self._workspace)
            run.compute(batch[index : index + 1], {n: array[index : index + 1] for n, array in results.items()})
            finite[index] = run.finite
        self._progress(what, len(batch), len(batch))
        return [results.get(name, finite) for name in outputs]

    @contextmanager
    def _open(self, pieces: Sequence[Piece]) -> Iterator[list[RunPiece]]:
        yield [_OpenPiece(self, piece) for piece in pieces]

    def weights(self, piece: Piece) -> dict[str, NDArray[Any]]:
        """The weights of a piece that are not in its model, as they are in the bundle's files."""
        found = {}
        for weight in piece.weights:
            sha256 = weight.sha256 if self.verify_hashes else None
            data = self.bundle.read_part(weight.file, weight.offset, weight.bytes, sha256)
            found[weight.name] = np.frombuffer(data, weight.dtype).reshape(weight.shape)
        return found


class _OpenPiece:
    """A piece with its session."""

    def __init__(self, half: RowsHalf, piece: Piece) -> None:
        self._name = half.bundle.path / half.bundle.manifest.rows[half.part]
        self._session = onnxruntime_cpu.open_piece(self._name, piece.model, half.weights(piece), half.threads)

    def __call__(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        with failures_explained("ONNX Runtime", self._name, inputs), onnxruntime_cpu.running() as options:
            return self._session.run(outputs, inputs, options)  # type: ignore[no-any-return]


class Whole(Runner, Protocol):
    """What runs the whole graph.

    extra_bytes: how much more memory its runs take than those of ONNX Runtime, which plans are made for.
    """

    extra_bytes: int


class BoundedRunner:
    """The whole graph of a half, which runs by rows, on ONNX Runtime, where a call would take more memory than there
    is.

    keep_memory: whether ``whole`` keeps the memory of its runs.
    """

    def __init__(self, half: RowsHalf, budget: Budget, whole: Whole, keep_memory: bool = False) -> None:
        self.half, self._budget, self._whole, self._keep_memory = half, budget, whole, keep_memory
        self._kept = 0
        self.graph, self.inputs, self.outputs = whole.graph, whole.inputs, whole.outputs
        self._logged = False
        self._lock = threading.Lock()

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, Array] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Any]:
        """``Runner.run``, within the budget. Raises InputError for a budget that no plan fits."""
        if not self.half.exists:
            return self._whole.run(outputs, inputs, results, after)
        ((name, array),) = inputs.items()
        batch, rows, columns = self._size(name, array)
        chosen: list[Plan | None] = []

        def choose(left: int, alone: bool) -> int | None:
            whole = self._untiled(batch, rows, columns)
            if whole <= left:
                chosen.append(None)
                return whole
            plan = self.half.plan(rows, columns, left)
            if plan.bytes > left and not alone:
                return None
            self._check(plan, left)
            chosen.append(plan)
            return plan.bytes

        with self._budget.take(choose, self._kept):
            plan = chosen[-1]
            if plan is None:
                try:
                    computed = self._whole.run(outputs, inputs, results, after)
                    if self._keep_memory:
                        self._kept = max(self._kept, self._untiled(batch, rows, columns))
                    return computed
                except BackendError as error:
                    if not is_out_of_memory(error.__cause__):
                        raise
                    plan = self.half.plan(rows, columns, 0)
                    log.warning("%s: %s. It is computed by rows instead", self.graph, error)
            self._log(plan, rows, columns)
            return self.half.run(plan, outputs, array, results)  # type: ignore[arg-type]  # host arrays on the CPU

    def plan(self, batch: int, rows: int, columns: int) -> MemoryPlan:
        """What a call takes that is the only one."""
        limit = self._budget.limit(self._kept)
        whole, (_, least) = self._untiled(batch, rows, columns), self.half.needs(batch, rows, columns)
        if whole <= limit:
            return MemoryPlan(whole, "untiled", 0, 0.0, least, fits=True)
        plan = self.half.plan(rows, columns, limit)
        return MemoryPlan(plan.bytes, "rows", plan.disk, plan.again, least, fits=plan.bytes <= limit)

    def _untiled(self, batch: int, rows: int, columns: int) -> int:
        return untiled_bytes(self.half.table, rows, columns, batch) + self._whole.extra_bytes

    def _check(self, plan: Plan, limit: int) -> None:
        if plan.bytes > limit and self._budget.most is not None:
            factor = self.half.table.factor
            size = f"{plan.layout.rows * factor}x{plan.layout.columns * factor}"
            raise InputError(
                f"max_memory is {self._budget.most:,} bytes, and the {self.half.part} takes at least {plan.bytes:,} "
                f"for an image of {size} (height x width). Give that many or more, or a smaller image"
            )

    def _size(self, name: str, array: Array) -> tuple[int, int, int]:
        """(batch, rows, columns) of the latents of what is given."""
        factor = self.half.table.factor
        interface = self.half.bundle.manifest.interface(self.half.part)
        batch, height, width = interface.pixels(tuple(shape_of(array)))
        return batch, height // factor, width // factor

    def _log(self, plan: Plan, rows: int, columns: int) -> None:
        with self._lock:
            first, self._logged = not self._logged, True
        factor = self.half.table.factor
        log.log(
            logging.INFO if first else logging.DEBUG,
            "the %s of %dx%d runs by rows: %s MB at its peak%s, %.0f %% of it computed again",
            self.half.part,
            rows * factor,
            columns * factor,
            f"{plan.bytes / 1e6:,.0f}",
            f" and {plan.disk / 1e6:,.0f} MB in files" if plan.disk else "",
            100 * plan.again,
        )
