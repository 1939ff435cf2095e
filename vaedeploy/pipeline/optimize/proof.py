"""Running two graphs on the same inputs: how far each output of the second is from that of the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vaedeploy.graph.edit import LOWER_TYPES
from vaedeploy.graph.graph import load_model
from vaedeploy.numerics.emulation import emulate_each
from vaedeploy.pipeline.optimize.inputs import Feed
from vaedeploy.runtime import onnxruntime_cpu

DRAWING = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
"""The operators that draw random numbers."""


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of the second graph is from that of the first.

    type: numpy's name of the output's type, such as float32.
    relative_l2: norm of the error over norm of the first graph's output, the largest over all inputs; NaN where either
    output has NaN or infinity.
    not_finite, before: how many numbers of the second and of the first graph's output are NaN or infinite, over all
    inputs.
    """

    output: str
    type: str
    relative_l2: float
    not_finite: int = 0
    before: int = 0


def run_both(first: Path, second: Path, feeds: Sequence[Feed]) -> tuple[OutputDifference, ...]:
    """Run both graphs on ``feeds``, half precision emulated. Raises BackendError where ONNX Runtime cannot run one."""
    expected, found = _run(first, feeds), _run(second, feeds)
    return tuple(_difference(name, [e[name] for e in expected], [f[name] for f in found]) for name in expected[0])


def drawing_node(model: ir.Model) -> ir.Node | None:
    """A node that draws random numbers, so that no two runs give the same outputs; None where there is none."""
    return next((node for node in model.graph.all_nodes() if node.op_type in DRAWING), None)


def _run(path: Path, feeds: Sequence[Feed]) -> Sequence[Mapping[str, NDArray[Any]]]:
    model = load_model(path)
    values = [*model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)]
    if any(value.dtype in LOWER_TYPES for value in values):
        return emulate_each(model, feeds)
    session = onnxruntime_cpu.Session(path)
    return [dict(zip(session.outputs, session.run(session.outputs, feed), strict=True)) for feed in feeds]


def _difference(name: str, expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> OutputDifference:
    errors = [_relative(e.astype(np.float64), f.astype(np.float64)) for e, f in zip(expected, found, strict=True)]
    counts = [sum(int((~np.isfinite(a.astype(np.float64))).sum()) for a in arrays) for arrays in (found, expected)]
    return OutputDifference(name, str(found[0].dtype), float(np.max(errors)), *counts)  # max keeps a NaN


def _relative(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return float("nan")
    error, norm = np.linalg.norm(found - expected), np.linalg.norm(expected)
    return float(error / norm) if norm else float(error and np.inf)
