"""How ONNX operators relate the scales of tensors, with each tensor t stored as t * 2^e(t).

    linear, one argument     e(y) = e(x)                          Reshape, Resize, Neg, ReduceMean, pooling, ...
    sums and choices         e(y) = e(a) = e(b) = ...             Add, Concat, Where, Max, Clip, ...
    homogeneous              e(y) = e(x)                          Relu, LeakyRelu, PRelu, Abs
    products                 e(y) = e(a) + e(b), e(bias) = e(y)   Mul, MatMul, Conv, Gemm, ...
    quotients, powers        e(y) = e(a) - e(b), k e(x), e(x)/2   Div, Reciprocal, Pow, Sqrt
    normalisations           e(scale) = e(bias) = e(y),           InstanceNormalization, LayerNormalization, ...
                             e(epsilon) = 2 e(x)
    anything else            e = 0 for all that it reads and writes

A constant has an exponent for each input that reads it, since it can be stored once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from fractions import Fraction

import onnx_ir as ir

from vaedeploy.graph.edit import NORMALIZATIONS
from vaedeploy.rewrite.rescale.exponents import Exponents

__all__ = ["SCALED", "Epsilon", "Use", "constant", "relate_graph"]

SCALED = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
"""The types of tensors that have an exponent. In fp16 a scaled weight may lose bits, so rescale before lowering."""


@dataclass(frozen=True)
class Use:
    """The key of the constant that one node reads at one input."""

    node: ir.Node
    index: int

    def is_weight(self) -> bool:
        """Whether the constant has more than one number per channel, so that it is worth leaving as it is."""
        value = self.node.inputs[self.index]
        return value is not None and value.shape is not None and sum(d != 1 for d in value.shape) > 1


@dataclass(frozen=True)
class Epsilon:
    """The key of the epsilon attribute of a normalisation."""

    node: ir.Node

    def number(self) -> float:
        """The attribute's value, or ONNX's default where it is not given."""
        return self.node.attributes.get_float("epsilon", 1e-5)


FIRST = (0,)

ALL = None

TIED: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(["Add", "Sub", "Sum", "Mean", "Max", "Min", "Concat"], ALL),
    **dict.fromkeys(["Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand"], FIRST),
    **dict.fromkeys(["Tile", "Slice", "Split", "Gather", "GatherElements", "GatherND", "Trilu"], FIRST),
    **dict.fromkeys(["DepthToSpace", "SpaceToDepth", "Upsample", "Resize", "Dropout", "CumSum"], FIRST),
    **dict.fromkeys(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"], FIRST),
    **dict.fromkeys(["AveragePool", "MaxPool", "LpPool"], FIRST),
    **dict.fromkeys(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"], FIRST),
    **dict.fromkeys(["Neg", "Abs", "Relu", "LeakyRelu", "PRelu"], FIRST),
    "Pad": (0, 2),
    "Clip": (0, 1, 2),
    "Where": (1, 2),
}
"""Operator -> the inputs that share the outputs' exponent; ``ALL`` for every input."""

PRODUCTS = ("Mul", "MatMul", "Conv", "ConvTranspose", "Gemm")

UNRELATED = ("Shape", "Size", "IsNaN", "IsInf", "Constant")
"""Operators whose result does not depend on scale, and Constant, whose result may have any scale."""

ONE_FLOAT_OUTPUT = ("MaxPool", "Dropout")
"""Operators whose second output is indices or a mask, which no scale changes."""


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant that ``value`` holds; None for a computed value, a graph input, or an input that is left out."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def relate_graph(model: ir.Model) -> Exponents:
    """The exponents of all float32 and float64 tensors of ``model``, related by its operators.

    Keys: an ``ir.Value`` for a graph input or a computed tensor, a ``Use`` for a constant at a node's input, and an
    ``Epsilon``. Inputs and outputs of the graph are fixed at zero, and so is everything that control flow touches.
    """
    exponents = Exponents(follows=lambda key: not isinstance(key, ir.Value))
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype in SCALED:
            exponents.fix(value, "the graph's interface")
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type in UNRELATED and node.domain == "":
            continue
        relate = _RELATIONS.get(node.op_type) if node.domain == "" else None
        inside = node.graph is not model.graph
        operator = _Operator(node, exponents)
        if inside or relate is None or not relate(operator):
            operator.fix_all()
    return exponents


class _Operator:
    """One node, with methods that add its relations to ``exponents``; they return False where that is not possible."""

    def __init__(self, node: ir.Node, exponents: Exponents) -> None:
        self.node, self.exponents = node, exponents
        self.why = f"{node.op_type} {node.name}"

    def input(self, index: int) -> Hashable | None:
        """The key of an input; None where the input is left out or has no exponent."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None or value.dtype not in SCALED:
            return None
        return value if constant(value) is None else Use(self.node, index)

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def output(self) -> Hashable | None:
        """The key of the first output; None where it has no exponent, or where another float output is used."""
        used = [value for value in self.node.outputs if value.uses() or value.is_graph_output()]
        main = self.node.outputs[0]
        if self.node.op_type not in ONE_FLOAT_OUTPUT and any(value is not main for value in used):
            return None
        return main if main.dtype in SCALED else None

    def relate(self, *terms: tuple[Hashable | None, int]) -> bool:
        known = [(key, factor) for key, factor in terms if key is not None]
        if len(known) < len(terms):
            return False
        self.exponents.relate(known, self.why)
        return True

    def equal(self, *keys: Hashable | None) -> bool:
        if None in keys:
            return False
        return all(self.relate((keys[0], 1), (key, -1)) for key in keys[1:])

    def optional(self, index: int) -> list[Hashable | None]:
        return [self.input(index)] if self.has(index) else []

    def fix_all(self) -> None:
        for index in range(len(self.node.inputs)):
            if (key := self.input(index)) is not None:
                self.exponents.fix(key, self.why)
        for value in self.node.outputs:
            if value.dtype in SCALED:
                self.exponents.fix(value, self.why)


def _tied(operator: _Operator) -> bool:
    node = operator.node
    if (
        node.op_type == "Resize"
        and node.attributes.get_string("coordinate_transformation_mode") == "tf_crop_and_resize"
    ):
        return False  # it fills with a constant, which would not scale
    if node.op_type == "PRelu" and not _fix(operator, 1):
        return False
    indices = TIED[node.op_type]
    indices = tuple(range(len(node.inputs))) if indices is ALL else indices
    outputs: list[ir.Value | None] = [value if value.dtype in SCALED else None for value in node.outputs]
    if node.op_type in ONE_FLOAT_OUTPUT:
        outputs = outputs[:1]
    return operator.equal(*outputs, *(operator.input(index) for index in indices if operator.has(index)))


def _fix(operator: _Operator, index: int) -> bool:
    return operator.relate((operator.input(index), 1))


def _product(operator: _Operator) -> bool:
    y = operator.output()
    return operator.equal(y, *operator.optional(2)) and operator.relate(
        (y, 1), (operator.input(0), -1), (operator.input(1), -1)
    )


def _quotient(operator: _Operator) -> bool:
    return operator.relate((operator.output(), 1), (operator.input(0), -1), (operator.input(1), 1))


def _reciprocal(operator: _Operator) -> bool:
    return operator.relate((operator.output(), 1), (operator.input(0), 1))


def _square_root(operator: _Operator) -> bool:
    return operator.relate((operator.output(), 2), (operator.input(0), -1))


def _sum_of_squares(operator: _Operator) -> bool:
    return operator.relate((operator.output(), 1), (operator.input(0), -2))


def _power(operator: _Operator) -> bool:
    tensor = constant(operator.node.inputs[1])
    if tensor is None or tensor.size != 1:
        return False
    power = Fraction(float(tensor.numpy().reshape(())))
    if power.denominator > 2:  # hardly any power of two would still be one
        return False
    return operator.relate((operator.output(), power.denominator), (operator.input(0), -power.numerator))


def _normalization(operator: _Operator) -> bool:
    x, y = operator.input(0), operator.output()
    return operator.equal(y, operator.input(1), *operator.optional(2)) and operator.relate(
        (Epsilon(operator.node), 1), (x, -2)
    )


def _unit_norm(operator: _Operator) -> bool:
    """LpNormalization: the scale of x does not change y, so e(y) is 0."""
    if operator.input(0) is None:
        return False
    return operator.relate((operator.output(), 1))


def _batch_normalization(operator: _Operator) -> bool:
    x, scale, bias, mean, variance = (operator.input(index) for index in range(5))
    y = operator.output()
    return (
        operator.equal(y, bias)
        and operator.equal(x, mean)
        and operator.relate((variance, 1))
        and operator.relate((y, 1), (x, -1), (scale, -1))
    )


_RELATIONS: dict[str, Callable[[_Operator], bool]] = {
    **dict.fromkeys(TIED, _tied),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(NORMALIZATIONS - {"LpNormalization"}, _normalization),
    "Div": _quotient,
    "Reciprocal": _reciprocal,
    "Sqrt": _square_root,
    "ReduceSumSquare": _sum_of_squares,
    "Pow": _power,
    "LpNormalization": _unit_norm,
    "BatchNormalization": _batch_normalization,
}
