"""The rows form of a half, and its pieces on ONNX Runtime's CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.rows import Piece, RowsTable, decode_rows
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.runtime.device import Array, shape_of
from vaedeploy.runtime.failures import failures_explained
from vaedeploy.runtime.rows.arrays import Arrays, HostArrays
from vaedeploy.runtime.rows.plan import Plan, make_plan, untiled_bytes
from vaedeploy.runtime.rows.store import Workspace
from vaedeploy.runtime.rows.strips import Run, RunPiece
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import Part

__all__ = ["HostPiece", "OpenPiece", "RowsHalf"]

OpenPiece = Callable[[Path, Piece, Mapping[str, NDArray[Any]]], RunPiece]


class RowsHalf:
    """The rows form of a half in an open bundle.

    threads: of the CPU, where ``open_piece`` is None. open_piece: opens a piece with its weights, on arrays of
    ``arrays``; its first argument names the piece in errors. None for both is ONNX Runtime on the CPU.
    """

    def __init__(
        self,
        bundle: Bundle,
        part: Part,
        threads: int | None = None,
        verify_hashes: bool = True,
        progress: Progress = silent,
        workspace: Workspace | None = None,
        open_piece: OpenPiece | None = None,
        arrays: Arrays | None = None,
    ) -> None:
        self.bundle, self.part, self._verify_hashes = bundle, part, verify_hashes
        self._progress, self._workspace = progress, workspace
        self._open_piece = open_piece or partial(HostPiece, threads=threads)
        self._arrays = arrays or HostArrays()
        self._plans: dict[tuple[int, int, int], Plan] = {}

    @property
    def exists(self) -> bool:
        """Whether the bundle has this form of the half."""
        return self.part in self.bundle.manifest.rows

    @property
    def missing(self) -> str:
        """Where it does not exist: that, and what to do, as sentences without the last full stop."""
        fact = f"the {self.part} of bundle {self.bundle.path} cannot be computed by rows"
        if not self.bundle.manifest.rewritten:
            return f"{fact}, since it was exported with --no-rewrite. Export it again without that option"
        again = self.bundle.manifest.export_command(self.bundle.path)
        return f"{fact}. If an older vaedeploy made it, export it again: {again}"

    @cached_property
    def table(self) -> RowsTable:
        """The pieces. Raises BundleError where they cannot be read, or are not of this half."""
        name = self.bundle.manifest.rows[self.part]
        table = decode_rows(self.bundle.read(name, self._verify_hashes), str(self.bundle.path / name))
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
        """The plan for an item of these latent rows and columns within ``budget`` bytes, or else the smallest plan."""
        key = rows, columns, budget
        plan = self._plans.get(key)  # once: other threads may clear them at any moment
        if plan is None:
            if len(self._plans) > 64:
                self._plans.clear()
            plan = self._plans[key] = make_plan(
                self.table, rows, columns, budget, self._workspace is not None, self._arrays.gives_back
            )
        return plan

    def untiled(self, batch: int, rows: int, columns: int) -> int:
        """Bytes that a batch of that many latent rows and columns takes whole."""
        return untiled_bytes(self.table, rows, columns, batch) + self._pixels(batch, rows, columns)

    def by_rows(self, batch: int, rows: int, columns: int, budget: int) -> tuple[int, Plan]:
        """Bytes that it takes by rows, and the plan for its items within ``budget`` bytes, or the smallest one."""
        copied = self._pixels(batch, rows, columns) if self.part == "encoder" else 0
        plan = self.plan(rows, columns, max(0, budget - copied))
        return plan.bytes + copied, plan

    def needs(self, batch: int, rows: int, columns: int) -> tuple[int, int]:
        """Bytes that it takes whole, and the fewest that it can take."""
        untiled, (least, _) = self.untiled(batch, rows, columns), self.by_rows(batch, rows, columns, 0)
        return untiled, min(untiled, least)

    def _pixels(self, batch: int, rows: int, columns: int) -> int:
        """Bytes of images that are neither the caller's nor counted as tensors of the graph: the copy that an encoder
        reads, and the floats that a decoder's graph converts to bytes.
        """
        interface, factor = self.bundle.manifest.interface(self.part), self.table.factor
        size = batch, rows * factor, columns * factor
        return interface.takes(*size).size if self.part == "encoder" else interface.gives(*size)["image"].size

    def size(self, array: Array) -> tuple[int, int, int]:
        """(batch, rows, columns) of the latents that the half's input is, or becomes."""
        factor = self.table.factor
        batch, height, width = self.bundle.manifest.interface(self.part).pixels(tuple(shape_of(array)))
        return batch, height // factor, width // factor

    def run(self, plan: Plan, outputs: Sequence[str], batch: Any, given: Mapping[str, Any] | None = None) -> list[Any]:
        """The named outputs for a batch, item by item: the arrays of ``given``, and new ones of numpy for the others.

        batch, given: in the memory of ``arrays``.
        """
        items = shape_of(batch)[0]
        results = dict(given or {})
        for name in self.table.outputs:
            if name in outputs and name not in results:
                cut = plan.layout.cuts[name]
                _, *shape = cut.at(plan.layout.rows, plan.layout.columns)
                results[name] = np.empty((items, *shape), cut.dtype)
        finite = np.empty(items, np.bool_)
        done, factor = 0.0, self.table.factor
        bundle = self.bundle.sharing_files()  # they are read until the end, even if the VAE is closed meanwhile
        what = f"The {self.part}, {plan.layout.rows * factor}x{plan.layout.columns * factor} by rows"

        def advance(share: float) -> None:
            nonlocal done
            self._progress(what, done, items)
            done = min(done + share, items)

        for index in range(items):
            run = Run(plan, partial(self._open, bundle), advance, self._workspace, self._arrays)
            run.compute(batch[index : index + 1], {n: array[index : index + 1] for n, array in results.items()})
            finite[index] = run.finite
        self._progress(what, items, items)
        return [results.get(name, finite) for name in outputs]

    @contextmanager
    def _open(self, bundle: Bundle, pieces: Sequence[Piece]) -> Iterator[list[RunPiece]]:
        name = bundle.path / bundle.manifest.rows[self.part]
        yield [self._open_piece(name, piece, self._weights(bundle, piece)) for piece in pieces]

    def _weights(self, bundle: Bundle, piece: Piece) -> dict[str, NDArray[Any]]:
        """The weights of a piece that are not in its model, as they are in the bundle's files."""
        found = {}
        for weight in piece.weights:
            sha256 = weight.sha256 if self._verify_hashes else None
            data = bundle.read_part(weight.file, weight.offset, weight.bytes, sha256)
            found[weight.name] = np.frombuffer(data, weight.dtype).reshape(weight.shape)
        return found


class HostPiece:
    """A piece with its session."""

    def __init__(self, name: Path, piece: Piece, weights: Mapping[str, NDArray[Any]], threads: int | None) -> None:
        self._name = name
        self._session = onnxruntime_cpu.open_piece(name, piece.model, weights, threads)

    def __call__(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        with failures_explained("ONNX Runtime", self._name, inputs), onnxruntime_cpu.running() as options:
            return self._session.run(outputs, inputs, options)  # type: ignore[no-any-return]
