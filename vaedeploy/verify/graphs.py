"""The graphs of a bundle against golden cases: which form is run how, at which cases and to which limits."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle.golden import GoldenCase
from vaedeploy.bundle.graphs import FORMS
from vaedeploy.bundle.manifest import Manifest
from vaedeploy.errors import BackendError
from vaedeploy.images.pixels import to_float
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.system.heap import collect_garbage, trim_heap
from vaedeploy.system.installs import install_command
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import PARTS, Part, Precision
from vaedeploy.verify.cases import verify_cases
from vaedeploy.verify.looks import Looks
from vaedeploy.verify.report import Case, Report

__all__ = ["prepare_photo", "verify_graphs"]

PORTABLE_CASES = ("odd",)
"""The cases that the portable graphs run as well. They are engines' starting point and never run by the runtime where
there is another form, so one small case with every size unlike is enough; ONNX Runtime would miss the fp32 limit on
them at 512x512.
"""


def verify_graphs(
    manifest: Manifest,
    folder: Path,
    cases: Sequence[GoldenCase],
    compared_with: str,
    looks: Looks | None,
    progress: Progress,
) -> Report:
    """Run every form of both halves and judge it in its own precision.

    Half precision runs twice: as it is, where ONNX Runtime has the operators, and emulated, since ONNX Runtime's CPU
    provider computes it in float32 and would hide an overflow.

    compared_with: what gave the reference outputs, in words. looks: see ``verify_cases``.
    """
    if manifest.precision != "fp32":
        _check_emulation()  # to fail before the work, not in the middle of it
    collect_garbage()
    rows: tuple[Case, ...] = ()
    forms = {form: own for form, own in FORMS[manifest.precision].items() if form in manifest.graphs["decoder"]}

    def files(form: Any) -> dict[Part, Path]:
        return {part: folder / manifest.graphs[part][form] for part in PARTS}

    def run(
        form: str, graphs: Mapping[Part, Path], own: Precision, chosen: Sequence[GoldenCase], tell: Progress
    ) -> None:
        nonlocal rows
        runner = _OneSession()
        rows += verify_cases(
            chosen,
            lambda photo: runner.run(graphs["encoder"], prepare_photo(manifest, photo)),
            lambda latent: runner.run(graphs["decoder"], latent),
            precision=own,
            form=form,
            looks=looks,
            progress=tell,
        )

    some = [case for case in cases if case.name in PORTABLE_CASES] if "onnxruntime" in forms else cases
    run("portable", files("portable"), "fp32", some, silent if forms else progress)
    for form, own in forms.items():
        if own != "bf16":
            run(form, files(form), own, cases, progress)
        if own != "fp32":
            with tempfile.TemporaryDirectory(prefix="vaedeploy-") as temporary:
                emulated = {part: _write_emulated(path, Path(temporary)) for part, path in files(form).items()}
                run(f"{form}, emulated {own}", emulated, own, cases, progress)
    return Report(manifest.precision, compared_with, onnxruntime_cpu.NAME, rows)


def prepare_photo(manifest: Manifest, photo: NDArray[np.uint8]) -> NDArray[Any]:
    """(B, H, W, 3) uint8 as the encoder's graph takes it."""
    return photo if manifest.image_input == "uint8" else to_float(photo)


def _check_emulation() -> None:
    try:
        import vaedeploy.numerics.emulation  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"half precision is verified by emulation, which needs onnx_ir ({error}): {install_command('build')}"
        ) from error


def _write_emulated(graph: Path, folder: Path) -> Path:
    import onnx_ir as ir

    from vaedeploy.numerics.emulation import save_emulating

    path = folder / graph.name
    save_emulating(ir.load(graph), path)
    return path


class _OneSession:
    """Runs graphs, holding one of them at a time: two full-size ones need not be in memory at once."""

    def __init__(self) -> None:
        self.session: onnxruntime_cpu.Session | None = None

    def run(self, graph: Path, value: NDArray[Any]) -> dict[str, NDArray[Any]]:
        if self.session is None or self.session.graph != graph:
            self.session = None
            self.session = onnxruntime_cpu.Session(graph)
        trim_heap()  # what smaller cases left, 0.1 GB, would come on top of what the largest needs
        names = self.session.outputs
        return dict(zip(names, self.session.run(names, {self.session.inputs[0]: value}), strict=True))
