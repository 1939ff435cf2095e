"""Measures the largest magnitude of every tensor in a graph on real inputs, which fp16 must hold.

After each floating-point tensor the measured graph has ReduceMax, ReduceMin and ReduceSum, so only numbers leave ONNX
Runtime, and a tensor is freed as soon as its last reader is done. With a full-size decoder at 512x512 the process
peaked at 1.56 GB; a plain run peaked at 1.50 GB, and at 1.62 GB without ONNX Runtime's optimisations. The sum only
finds NaN, which ReduceMax and ReduceMin overlook.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vaedeploy.errors import BackendError, InputError
from vaedeploy.graph.edit import LOWER_TYPES, free_name
from vaedeploy.graph.graph import load_model
from vaedeploy.runtime.onnxruntime_cpu import measuring_session, running
from vaedeploy.system.progress import Progress, silent

WHAT = "Measuring activations"
"""What the progress report says by default."""

MEASURED = (ir.DataType.FLOAT, ir.DataType.DOUBLE, *LOWER_TYPES)
"""The types of the tensors that are measured."""


def measure_maxima(
    model: ir.Model | str | Path,
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    *,
    what: str = WHAT,
    progress: Progress = silent,
) -> dict[str, float]:
    """The largest magnitude over all ``feeds``, by name, of each floating-point graph input and node output.

    model: a graph, which is not changed, or the path of one. feeds: each has an array for every graph input, by name.
    what: the text that ``progress`` gets. A tensor that held an infinity or a NaN has the maximum ``inf``; one that was
    always empty has 0.0. Tensors inside the subgraphs of control flow are not measured.

    Raises InputError where there is no feed or no floating-point tensor, BackendError with what ONNX Runtime said.
    """
    # A clone shares the weights, whose bytes are not read before the probe is saved.
    probe = load_model(Path(model)) if isinstance(model, str | Path) else model.clone()
    names = _add_reductions(probe)
    maxima: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="vaedeploy-") as folder:
        path = Path(folder) / "probe.onnx"
        ir.save(probe, path, external_data="probe.onnx.data")
        del probe
        session = measuring_session(path)
        total = len(feeds) if isinstance(feeds, Sized) else 1
        for done, feed in enumerate(feeds):
            progress(what, min(done, total - 1), total)
            try:
                with running() as options:
                    numbers = iter(session.run(None, dict(feed), options))
            except Exception as error:
                shapes = ", ".join(f"{name} {np.shape(array)}" for name, array in feed.items())
                raise BackendError(f"ONNX Runtime failed to measure the graph on {shapes}: {error}") from error
            magnitudes = {name: _magnitude(*(float(next(numbers)) for _ in range(3))) for name in names}
            maxima = {name: max(maxima.get(name, 0.0), value) for name, value in magnitudes.items()}
        del session  # Windows deletes no file that is open
    progress(what, total, total)
    if not maxima:
        raise InputError(
            "there is nothing to measure activations on: give at least one feed, and a graph with floating-point "
            "tensors"
        )
    return maxima


def _add_reductions(model: ir.Model) -> list[str]:
    """Replace the outputs of ``model`` by three numbers per measured tensor; returns the tensors' names in order."""
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ir.passes.common.ShapeInferencePass()(model)
    values = list(_measured(model))
    taken = {value.name for node in model.graph for value in node.outputs}
    model.graph.outputs.clear()
    for index, value in enumerate(values):
        producer = value.producer()
        nodes = []
        source, kind = value, value.type
        if value.dtype in LOWER_TYPES:
            # ONNX Runtime's CPU provider cannot reduce half types; float32 holds all their values.
            kind = ir.TensorType(ir.DataType.FLOAT)
            nodes.append(ir.node("Cast", [value], {"to": ir.DataType.FLOAT}))
            source = nodes[-1].outputs[0]
        nodes += [ir.node(op, [source], {"keepdims": 0}) for op in ("ReduceMax", "ReduceMin", "ReduceSum")]
        for node in nodes:
            node.name = free_name(f"measure_{index}_{node.op_type}", taken)
            taken.add(node.name)
            node.outputs[0].name = node.name
            node.outputs[0].type = kind
        if producer is None:
            model.graph.insert_before(model.graph[0], nodes)
        else:
            model.graph.insert_after(producer, nodes)
        for node in nodes[-3:]:
            node.outputs[0].shape = ir.Shape([])
            model.graph.outputs.append(node.outputs[0])
    return [str(value.name) for value in values]


def _measured(model: ir.Model) -> Iterator[ir.Value]:
    computed = [value for node in model.graph if node.op_type != "Constant" for value in node.outputs]
    for value in (*model.graph.inputs, *computed):
        if value.dtype in MEASURED and value.name:
            yield value


def _magnitude(highest: float, lowest: float, total: float) -> float:
    if highest < lowest:  # the tensor had no elements
        return 0.0
    largest = max(abs(highest), abs(lowest))
    return math.inf if math.isnan(total) or not math.isfinite(largest) else largest
