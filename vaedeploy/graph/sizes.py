"""Computes sizes in a graph: shapes at given sizes of the symbolic dimensions, and small tensors made from shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from vaedeploy.errors import InputError

Dimensions = Sequence[int | None]

LARGEST_SIZES = 64
"""Most elements of a constant that is read to compute sizes. What is computed from shapes is a handful of numbers; a
constant of more elements is a weight, and must not be read.
"""

SIZE_OPERATORS = {
    *("Add", "Sub", "Mul", "Div", "Floor", "Cast", "Identity"),
    *("Shape", "Gather", "Slice", "Concat", "Reshape", "Squeeze", "Unsqueeze", "Transpose"),
    *("Constant", "ConstantOfShape"),
}
"""Operators with which exporters compute sizes. Results are polynomials in the sizes, or floors of such; there is no
comparison and no choice.
"""


def with_sizes(model: ir.Model, shapes: Mapping[str, int]) -> ir.Model:
    """A copy of ``model`` with the shapes that follow from these sizes of the inputs' symbolic dimensions.

    Shapes that do not follow from them stay unknown. Raises InputError as ``count_operations`` does.
    """
    _check_names(model, shapes)
    sized = model.clone()
    for value in _values(sized):
        if value.shape is not None:
            value.shape = ir.Shape(evaluate_shape(value.shape, shapes))
    _infer_shapes(sized)
    return sized


def _check_names(model: ir.Model, shapes: Mapping[str, int]) -> None:
    names: set[str] = set()
    for value in model.graph.inputs:
        for dim in value.shape or ():
            if isinstance(dim, ir.SymbolicDim):
                if dim.value is None:
                    raise InputError(
                        f"input {value.name} has a dimension without a name; give it one to count at a size"
                    )
                names |= dim.free_symbols()
    if names != set(shapes):
        raise InputError(
            f"sizes are given for {', '.join(sorted(shapes)) or 'nothing'}; "
            f"the inputs' dimensions are {', '.join(sorted(names)) or 'all fixed'}"
        )


def _values(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]


def _infer_shapes(model: ir.Model) -> None:
    """Infer shapes; where inference stops at a node that reads computed sizes, replace these by constants and go on."""
    infer = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
    opset = model.graph.opset_imports.get("", 0)
    while True:
        infer(model)
        unknown = [node for node in model.graph if static_shape(node.outputs[0]) is None]
        if not sum(_fix_sizes(node, model.graph, opset) for node in unknown):
            return


def _fix_sizes(node: ir.Node, graph: ir.Graph, opset: int) -> bool:
    """Replace the inputs of ``node`` that are computed from sizes by constants; returns whether there were any."""
    fixed = False
    for index, value in enumerate(node.inputs):
        if value is None or value.producer() is None or ir.convenience.get_const_tensor(value) is not None:
            continue
        array = evaluate(value, opset)
        if array is not None:
            constant = ir.val(f"{value.name}.at_{node.name}.{index}", const_value=ir.tensor(array))
            graph.register_initializer(constant)
            node.replace_input_with(index, constant)
            fixed = True
    return fixed


def evaluate_shape(shape: ir.Shape, sizes: Mapping[str, int]) -> list[int | None]:
    """``shape`` at these sizes of the symbols in its expressions (``2*height``); None where one stays unknown."""
    return [_evaluate_dim(dim, sizes) for dim in shape]


def _evaluate_dim(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | None:
    if isinstance(dim, int):
        return dim
    try:
        size = dim.evaluate(sizes)
    except ValueError:  # an exporter's own notation, such as torch's TruncToInt(2.0*ToFloat(s53))
        return None
    return size if isinstance(size, int) else None


def evaluate(
    value: ir.Value,
    opset: int,
    sizes: Mapping[str, int] | None = None,
    shapes: Mapping[ir.Value, Dimensions] | None = None,
) -> NDArray[Any] | None:
    """The elements of a small tensor that is computed from constants and shapes alone; None for any other tensor.

    opset: the opset of the graph that ``value`` is in. sizes: sizes of the symbols in annotated shapes. shapes: shapes
    of values, which take precedence over annotated shapes. Only ``SIZE_OPERATORS`` are evaluated.
    """
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    known: dict[str, NDArray[Any]] = {}
    nodes: list[Any] = []
    seen: set[ir.Node] = set()

    def collect(value: ir.Value) -> bool:
        """Gather the nodes and constants that ``value`` is computed from; False where it cannot be computed."""
        node, name = value.producer(), value.name or ""
        if name in known or node in seen:
            return True
        constant = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
        if constant is not None:
            if constant.size <= LARGEST_SIZES:
                known[name] = constant.numpy()
            return name in known
        if node is None or node.domain != "" or node.op_type not in SIZE_OPERATORS:
            return False
        if node.op_type == "Shape":
            dims = _shape(node, sizes or {}, shapes or {})
            if dims is not None:
                known[name] = np.array(dims, np.int64)
            return dims is not None
        seen.add(node)
        if not all(collect(source) for source in node.inputs if source is not None):
            return False
        nodes.append(ir.to_proto(node))  # after its sources, and so in order of computation
        return True

    if not collect(value):
        return None
    tensors = [numpy_helper.from_array(array, name) for name, array in known.items()]
    output = helper.make_tensor_value_info(value.name or "", TensorProto.UNDEFINED, None)
    graph = helper.make_graph(nodes, "sizes", [], [output], tensors)
    (result,) = ReferenceEvaluator(graph, opsets={"": opset}).run(None, {})
    return np.asarray(result)


def _shape(node: ir.Node, sizes: Mapping[str, int], shapes: Mapping[ir.Value, Dimensions]) -> list[int] | None:
    """The output of a Shape node; None where it is not known."""
    value = node.inputs[0]
    assert value is not None
    dims = shapes.get(value)
    if dims is None:
        if value.shape is None:
            return None
        dims = evaluate_shape(value.shape, sizes)
    end = node.attributes.get_int("end", len(dims))
    chosen = list(dims)[node.attributes.get_int("start", 0) : end]
    known = [dim for dim in chosen if dim is not None]
    return known if len(known) == len(chosen) else None


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of ``value``; None where the size of any axis is not known."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return value.shape.numpy()
