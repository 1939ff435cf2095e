"""Computes sizes in a graph: shapes at given sizes of the symbolic dimensions, and small tensors made from shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from vaedeploy.errors import InputError

Dimensions = Sequence[int | None]

LARGEST_SIZES = 64
"""The most elements of a constant that is read to compute sizes. Computations from shapes have a handful of numbers; a
larger constant is a weight, and must not be read.
"""

SIZE_OPERATORS = {
    *("Add", "Sub", "Mul", "Div", "Floor", "Cast", "Identity"),
    *("Shape", "Gather", "Slice", "Concat", "Reshape", "Squeeze", "Unsqueeze", "Transpose"),
    *("Constant", "ConstantOfShape"),
}
"""Operators with which exporters compute sizes. Results are polynomials in the sizes, or floors of these; nothing
compares or branches.
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
                names |= symbols_of(dim)
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
        return evaluate_expression(dim, sizes)
    except ValueError:  # an exporter's own notation, such as torch's TruncToInt(2.0*ToFloat(s53))
        return None


SIMPLE = re.compile(r"(?!.*(\*\*|[0-9]{10}))(?=[^(]*(\([^(]*){0,8}\Z)[\w .,()+*/%-]{1,100}")
"""Expressions that are evaluated. onnx_ir uses sympy, which takes hours for a power of powers or a text of many
brackets; exporters write sums and products of a few names.
"""


def symbols_of(dim: ir.SymbolicDim) -> frozenset[str]:
    """The names in a dimension's expression. Raises ValueError for a text that is not a ``SIMPLE`` expression."""
    return _parsed(dim.value or "")[1]


def evaluate_expression(dim: ir.SymbolicDim, sizes: Mapping[str, int]) -> int | None:
    """The size of a dimension for these sizes of its symbols; None if it is not a whole number, or a symbol has no
    size. Raises ValueError as ``symbols_of`` does.
    """
    _, symbols = _parsed(dim.value or "")
    if not symbols <= sizes.keys():
        return None
    return _computed(dim.value or "", tuple(sorted((name, sizes[name]) for name in symbols)))


@lru_cache(4096)
def _parsed(text: str) -> tuple[ir.SymbolicDim, frozenset[str]]:
    if text.isidentifier():
        return ir.SymbolicDim(text), frozenset((text,))
    if not SIMPLE.fullmatch(text):
        raise ValueError(f"{text!r} is no expression that is evaluated")
    dim = ir.SymbolicDim(text)
    try:
        return dim, dim.free_symbols()
    except (ArithmeticError, AttributeError, TypeError) as error:  # sympy's, such as for max() and for 1 % 0
        raise ValueError(f"{text!r} is no expression") from error


@lru_cache(4096)
def _computed(text: str, sizes: tuple[tuple[str, int], ...]) -> int | None:
    dim, symbols = _parsed(text)
    if text in symbols:
        return dict(sizes)[text]
    try:
        size = dim.evaluate(dict(sizes))
    except (ArithmeticError, AttributeError, TypeError):
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
    # Not a recursion, for which a chain of a thousand nodes would be too deep. A node comes with its value once its
    # sources have been gathered.
    waiting: list[tuple[ir.Value, ir.Node | None]] = [(value, None)]
    while waiting:
        wanted, ready = waiting.pop()
        if ready is not None:
            nodes.append(ir.to_proto(ready))  # after its sources, so in order of computation
            continue
        node, name = wanted.producer(), wanted.name or ""
        if name in known or node in seen:
            continue
        constant = None if wanted.is_graph_input() else ir.convenience.get_const_tensor(wanted)
        if constant is not None:
            if constant.size > LARGEST_SIZES:
                return None
            known[name] = constant.numpy()
            continue
        if node is None or node.domain != "" or node.op_type not in SIZE_OPERATORS:
            return None
        if node.op_type == "Shape":
            dims = _shape(node, sizes or {}, shapes or {})
            if dims is None:
                return None
            known[name] = np.array(dims, np.int64)
            continue
        seen.add(node)
        waiting.append((wanted, node))
        waiting += [(source, None) for source in reversed(node.inputs) if source is not None]

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
