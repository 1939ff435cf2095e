"""Comparing the graphs of a bundle with golden cases: how each form is run, on which cases and to which limits."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.golden import GoldenCase
from vaedeploy.bundle.graphs import FORMS
from vaedeploy.bundle.manifest import FileInfo, Manifest
from vaedeploy.errors import BackendError
from vaedeploy.images.pixels import to_float
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.runtime.rows.half import RowsHalf
from vaedeploy.system.heap import collect_garbage, trim_heap
from vaedeploy.system.installs import install_command
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import PARTS, Part, Precision
from vaedeploy.verify.cases import verify_cases
from vaedeploy.verify.looks import Looks
from vaedeploy.verify.record import record
from vaedeploy.verify.report import Case, Report

__all__ = ["prepare_photo", "verify_graphs"]

PORTABLE_CASES = ("odd",)
"""The cases for the portable graphs of a bundle that has a form for ONNX Runtime. Engines are still built from these
graphs, but the runtime never runs them, so one small case, whose sizes all differ, is enough. At 512x512, ONNX Runtime
would miss the fp32 limit on them.
"""

ROWS = "rows"
"""How cases name the pieces of a half. They run on PORTABLE_CASES too, since they are the same graph."""


def verify_graphs(
    manifest: Manifest,
    folder: Path,
    cases: Sequence[GoldenCase],
    compared_with: str,
    looks: Looks | None,
    progress: Progress,
) -> Report:
    """Run every form of both halves on golden cases, and judge each by the limits of its own precision.

    The pieces of the rows form are judged as float32.

    Half precision runs twice: as it is, where ONNX Runtime has the operators (it has no bfloat16 convolution), and
    emulated, because ONNX Runtime's CPU provider computes half precision in float32, which would hide an overflow.

    folder: where the graphs are. compared_with: what computed the reference outputs, in words.
    looks: see ``verify_cases``.
    """
    if manifest.precision != "fp32":
        _check_emulation()  # to fail before the work begins
    collect_garbage()
    rows: tuple[Case, ...] = ()
    forms = {
        form: precision for form, precision in FORMS[manifest.precision].items() if form in manifest.graphs["decoder"]
    }

    def files(form: Any) -> dict[Part, Path]:
        return {part: folder / manifest.graphs[part][form] for part in PARTS}

    def run(
        form: str, graphs: Mapping[Part, Path], precision: Precision, chosen: Sequence[GoldenCase], progress: Progress
    ) -> None:
        nonlocal rows
        runner = _OneSession()
        rows += verify_cases(
            chosen,
            lambda photo: runner.run(graphs["encoder"], prepare_photo(manifest, photo)),
            lambda latent: runner.run(graphs["decoder"], latent),
            precision=precision,
            form=form,
            looks=looks,
            progress=progress,
        )

    portable_cases = [case for case in cases if case.name in PORTABLE_CASES] if "onnxruntime" in forms else cases
    run("portable", files("portable"), "fp32", portable_cases, silent if forms else progress)
    for form, precision in forms.items():
        if precision != "bf16":
            run(form, files(form), precision, cases, progress)
        if precision != "fp32":
            with tempfile.TemporaryDirectory(prefix="vaedeploy-") as temporary:
                emulated = {part: _write_emulated(path, Path(temporary)) for part, path in files(form).items()}
                run(f"{form}, emulated {precision}", emulated, precision, cases, progress)
    if manifest.rows:
        chosen = [case for case in cases if case.name in PORTABLE_CASES]
        halves = _halves_by_rows(manifest, folder)
        rows += verify_cases(chosen, halves["encoder"], halves["decoder"], form=ROWS, looks=looks, progress=progress)
    return record(manifest, manifest.precision, compared_with, onnxruntime_cpu.NAME, rows)


def _halves_by_rows(
    manifest: Manifest, folder: Path
) -> dict[Part, Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]] | None]:
    """Each half, computed by rows in the least memory: in the lowest strips, with the most computed again.

    None for a half that has no such form.
    """
    # The bundle may not be finished yet.
    sizes = {file.name: FileInfo("0" * 64, file.stat().st_size) for file in folder.iterdir() if file.is_file()}
    bundle = Bundle(folder, msgspec.structs.replace(manifest, files=sizes))

    def computed(half: RowsHalf, value: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        part, interface = half.part, manifest.interface(half.part)
        given = prepare_photo(manifest, value) if part == "encoder" else value
        _, height, width = interface.pixels(given.shape)
        factor = manifest.latent.factor
        plan = half.plan(height // factor, width // factor, 0)
        return dict(zip(interface.outputs, half.run(plan, interface.outputs, given), strict=True))

    halves = {part: RowsHalf(bundle, part, verify_hashes=False) for part in PARTS}
    return {part: partial(computed, half) if half.exists else None for part, half in halves.items()}


def prepare_photo(manifest: Manifest, photo: NDArray[np.uint8]) -> NDArray[Any]:
    """``photo`` (B, H, W, N) uint8, converted to what the encoder's graph takes."""
    return photo if manifest.image_input == "uint8" else to_float(photo)


def _check_emulation() -> None:
    """Raise BackendError where the packages that emulate half precision are not installed."""
    try:
        import vaedeploy.numerics.emulation  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"half precision is verified by emulation, which needs onnx_ir ({error}): {install_command('build')}"
        ) from error


def _write_emulated(graph: Path, folder: Path) -> Path:
    """Write the float32 graph that emulates the half-precision ``graph`` into ``folder``; returns its path."""
    from vaedeploy.graph.graph import load_model
    from vaedeploy.numerics.emulation import save_emulating

    path = folder / graph.name
    save_emulating(load_model(graph), path)
    return path


class _OneSession:
    """Runs graphs and holds one of them at a time, so that two full-size ones are never in memory at once."""

    def __init__(self) -> None:
        self.session: onnxruntime_cpu.Session | None = None

    def run(self, graph: Path, value: NDArray[Any]) -> dict[str, NDArray[Any]]:
        if self.session is None or self.session.graph != graph:
            self.session = None
            self.session = onnxruntime_cpu.Session(graph)
        trim_heap()  # smaller cases left 0.1 GB, which the largest case would need on top of its own memory
        names = self.session.outputs
        return dict(zip(names, self.session.run(names, {self.session.inputs[0]: value}), strict=True))
