"""Emulates half precision on the CPU: runs a float16 or bfloat16 graph in float32, and rounds every computed tensor.

ONNX Runtime's CPU provider runs a half-precision graph with Casts that it inserts, and keeps float32 between nodes
where it can: an activation of 1e5 in the middle comes out finite. Here each node f whose declared output type is a half
type runs as

    y = h(f(x)),   h = Cast to the lower type, Cast back to float32

so y has the lower type's digits and its range: from 65520 on, float16 is infinity. Both Casts round to nearest, ties to
even, and no optimisation of ONNX Runtime removes the pair (the tests compare all levels bit by bit with numpy).

Inside a node everything is float32: convolutions and products of rounded numbers are summed in float32 and rounded
once. Tensor cores and native normalisation kernels do the same. A GPU that fuses nodes rounds less often than this
emulation; one that sums in the lower type is not modelled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vaedeploy.errors import BackendError
from vaedeploy.graph.edit import LOWER_TYPES, lazy_tensor
from vaedeploy.runtime import onnxruntime_cpu

__all__ = ["emulate", "emulate_each", "emulating_model", "save_emulating"]

FLOAT = ir.DataType.FLOAT

BODY = ir.AttributeType.GRAPH

EXACT = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile", "Slice", "Split", "Concat", "Gather"}
    | {"Identity", "Pad", "DepthToSpace", "SpaceToDepth", "Where"}
    | {"SequenceEmpty", "SequenceInsert", "SequenceAt", "ConcatFromSequence", "Loop", "If"}
    | {"Relu", "Neg", "Abs", "Max", "Min", "Clip", "MaxPool"}
)
"""Operators whose results are numbers that they read, up to the sign, so there is nothing to round."""


def emulating_model(model: ir.Model) -> ir.Model:
    """The float32 model that computes what ``model`` computes in half precision. ``model`` is not changed.

    Every float16 and bfloat16 tensor becomes float32, with values that the lower type has. Graph inputs and outputs of
    these types become float32 too, and keep their names and shapes. Weights are widened when they are read or saved.
    """
    model = model.clone()
    graph = model.graph
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in LOWER_TYPES:
            value.const_value, value.type = lazy_tensor(tensor, _widen, FLOAT, tensor.name), ir.TensorType(FLOAT)
    for value in graph.inputs:
        if value.dtype in LOWER_TYPES:
            _round(graph, value, value.dtype)
    for node in list(ir.traversal.RecursiveGraphIterator(graph)):
        _widen_attributes(node)
        for body in (attribute.as_graph() for attribute in node.attributes.values() if attribute.type == BODY):
            for value in body.inputs:  # a subgraph's inputs were rounded where they were made
                _widen_type(value)
        for output in node.outputs:
            lower = output.dtype
            if lower not in LOWER_TYPES:
                continue
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", FLOAT)
            if _is_exact(node):
                _widen_type(output)
            else:
                assert node.graph is not None
                _round(node.graph, output, lower)
    return model


def save_emulating(model: ir.Model, path: Path) -> None:
    """Write the emulating model to ``path`` and ``path`` + ".data". Only the weight being written is in memory."""
    ir.save(emulating_model(model), path, external_data=f"{path.name}.data")


def emulate(model: ir.Model, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a half-precision ``model`` on the CPU as on a GPU: ``feeds`` by input name -> outputs by name.

    Arrays for half-precision inputs are rounded; half-precision outputs come back as float32. The emulating model is
    written in float32 to a temporary folder, so that its weights are in memory only once.

    Raises BackendError where ONNX Runtime is missing or refuses the model or the feeds.
    """
    return emulate_each(model, [feeds])[0]


def emulate_each(model: ir.Model, sets: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
    """``emulate`` for several sets of feeds, with one session."""
    floats = {value.name for value in model.graph.inputs if value.dtype in (*LOWER_TYPES, FLOAT)}
    with tempfile.TemporaryDirectory(prefix="vaedeploy-") as folder:
        path = Path(folder) / "model.onnx"
        save_emulating(model, path)
        session = onnxruntime_cpu.Session(path)
        inputs = ({n: np.asarray(a, np.float32) if n in floats else a for n, a in feeds.items()} for feeds in sets)
        try:
            return [dict(zip(session.outputs, session.run(session.outputs, feeds), strict=True)) for feeds in inputs]
        except BackendError as error:
            raise BackendError(f"the graph could not be run in emulated half precision: {error}") from error


def _round(graph: ir.Graph, value: ir.Value, lower: ir.DataType) -> None:
    """Make ``value`` float32, and let all its readers read a rounded copy. A graph output keeps its name."""
    value.type = ir.TensorType(FLOAT)
    narrow = ir.node("Cast", [value], {"to": lower}, name=f"{value.name}_to_{lower.name.lower()}")
    widen = ir.node("Cast", narrow.outputs, {"to": FLOAT}, name=f"{value.name}_rounded")
    for node, dtype in ((narrow, lower), (widen, FLOAT)):
        (output,) = node.outputs
        output.name, output.shape, output.type = f"{node.name}.value", value.shape, ir.TensorType(dtype)
    (rounded,) = widen.outputs
    name, is_output, producer = value.name, value.is_graph_output(), value.producer()
    if producer is None:
        graph.insert_before(graph[0], [narrow, widen])
    else:
        graph.insert_after(producer, [narrow, widen])
    value.replace_all_uses_with(rounded, replace_graph_outputs=is_output)
    narrow.replace_input_with(0, value)
    if is_output and producer is not None:
        value.name, rounded.name = f"{name}.unrounded", name


def _widen_type(value: ir.Value) -> None:
    """Make a tensor of a half type, or a sequence of such tensors, float32."""
    if value.dtype in LOWER_TYPES:
        tensor_type = ir.TensorType(FLOAT)
        value.type = ir.SequenceType(tensor_type) if isinstance(value.type, ir.SequenceType) else tensor_type


def _is_exact(node: ir.Node) -> bool:
    nearest = node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "nearest"
    return not node.domain and (nearest or node.op_type in EXACT)


def _widen(array: NDArray[Any]) -> NDArray[np.float32]:
    return array.astype(np.float32)


def _widen_attributes(node: ir.Node) -> None:
    """Widen what an attribute holds: a tensor in Constant and ConstantOfShape, a type in SequenceEmpty."""
    if node.op_type == "SequenceEmpty" and node.attributes.get_int("dtype", FLOAT.value) in LOWER_TYPES:
        node.attributes["dtype"] = ir.AttrInt64("dtype", FLOAT.value)
    attribute = node.attributes.get("value")
    if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.dtype in LOWER_TYPES:
            widened = ir.Tensor(_widen(tensor.numpy()), name=tensor.name)
            node.attributes["value"] = ir.AttrTensor("value", widened)
