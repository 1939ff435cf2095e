"""Decides which nodes of a float32 graph compute in float32 after lowering, and so which type each float value has."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import onnx_ir as ir
from onnx import defs

from vaedeploy.graph.edit import NORMALIZATIONS as STANDARD_NORMALIZATIONS
from vaedeploy.rewrite.cuda import operators as cuda
from vaedeploy.rewrite.outcome import Refusal
from vaedeploy.rewrite.precision.weights import FLOAT, is_lost

NORMALIZATIONS = STANDARD_NORMALIZATIONS | {"GroupNorm"}

LINEAR = frozenset(
    {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "Attention"} | {"NhwcConv", "MultiHeadAttention"}
)

SUMS = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "GlobalAveragePool"}
)

WIDE = SUMS | {"Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "CumSum", "BatchNormalization"}
"""Operators that need float32's range or digits. BatchNormalization is among them because its running variance may be
any number, and float16's range is small.
"""

ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Neg", "Abs", "Max", "Min", "Clip", "Where"}
)

MOVES = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile", "Slice", "Split", "Concat", "Gather"}
    | {"Pad", "Identity", "DepthToSpace", "SpaceToDepth"}
)

SMALL_INTEGERS = frozenset({ir.DataType.BOOL, ir.DataType.UINT8, ir.DataType.INT8})
"""Types whose values are exact in both lower types."""


class Plan:
    """Which nodes compute in float32 (``wide``), and so which type each float value has."""

    def __init__(
        self, graph: ir.Graph, low: ir.DataType, opset: int, keep: frozenset[str], fp32_interface: bool, native: bool
    ) -> None:
        self.graph, self.low, self.opset, self.fp32_interface = graph, low, opset, fp32_interface
        # Shape and Size take any type, and read no element.
        self.nodes = [
            n for n in graph if any(map(is_float, (*n.inputs, *n.outputs))) and n.op_type not in ("Shape", "Size")
        ]
        self.floats = {v for n in self.nodes for v in (*n.inputs, *n.outputs) if v is not None and is_float(v)}
        self.refusals = [Refusal(n.name or "", why) for n in self.nodes if (why := self._unsupported(n))]
        forced = {n for n in self.nodes if n.name in keep or self._unsupported(n)}
        needing = {n for n in self.nodes if self._needs_float32(n) or (n.op_type in NORMALIZATIONS and not native)}
        self.wide = forced | needing | self._head() | self._tail()
        self._grow_over_normalizations()
        self._grow_backwards()
        self._settle_moves(forced)

    def type_of(self, value: ir.Value) -> ir.DataType:
        """The type in which a float value that is not constant is computed, or enters the graph."""
        node = value.producer()
        if node is None:
            return FLOAT if self.fp32_interface else self.low
        return FLOAT if node in self.wide or not self._is_tied(node, value) else self.low

    def type_at(self, node: ir.Node, index: int) -> ir.DataType | None:
        """The type in which ``node`` reads its float input ``index``; None where it takes any type."""
        if node.op_type in ("Shape", "Size"):
            return None
        if node in self.wide or (node.op_type == "Resize" and index > 0):  # roi and scales are not activations
            return FLOAT
        return self.low if self._takes_lower(self._type_variable(node, index)[1]) else FLOAT

    def _type_variable(self, node: ir.Node, index: int) -> tuple[str, frozenset[str]]:
        """The type variable of an input in the operator's schema, and the types that it allows."""
        if node.domain == cuda.DOMAIN:
            variable = cuda.INPUTS[node.op_type][index]
            return variable, cuda.FLOATS if variable == "T" else frozenset({variable})
        schema = defs.get_schema(node.op_type, self.opset, "")
        variable = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        return variable, frozenset(allowed.get(variable, [variable]))

    def _takes_lower(self, types: Collection[str]) -> bool:
        return f"tensor({self.low.name.lower()})" in types

    def _is_tied(self, node: ir.Node, output: ir.Value) -> bool:
        """Whether an output has an input's type, not a fixed one. A Cast counts as well, since its type can be set."""
        if node.op_type == "Cast" or node.domain == cuda.DOMAIN:
            return True
        schema = defs.get_schema(node.op_type, self.opset, "")
        variable = schema.outputs[min(cast(int, output.index()), len(schema.outputs) - 1)].type_str
        return variable in {self._type_variable(node, i)[0] for i, v in enumerate(node.inputs) if v in self.floats}

    def _unsupported(self, node: ir.Node) -> str | None:
        """Why ``node`` cannot compute in the lower type; None where it can."""
        if node.domain not in ("", "ai.onnx") and (node.domain != cuda.DOMAIN or node.op_type not in cuda.INPUTS):
            return f"{node.domain}.{node.op_type} is not a standard operator"
        if any(output.type is not None and not isinstance(output.type, ir.TensorType) for output in node.outputs):
            return f"{node.op_type} gives a sequence"
        first = next((i for i, v in enumerate(node.inputs) if v in self.floats), None)
        if first is None or self._takes_lower(self._type_variable(node, first)[1]):
            return None
        return f"{node.op_type} does not take {self.low.name.lower()} in opset {self.opset}"

    def _variables(self, node: ir.Node) -> list[ir.Value]:
        """Float inputs that are not constant."""
        return [v for v in node.inputs if v is not None and v in self.floats and not is_constant(v)]

    def _needs_float32(self, node: ir.Node) -> bool:
        if node.op_type in WIDE or (node.op_type == "Div" and node.inputs[1] in self._variables(node)):
            return True
        return node.op_type in ELEMENTWISE and any(v is not None and is_lost(v, self.low) for v in node.inputs)

    def _head(self) -> set[ir.Node]:
        """The nodes before the first convolution, product or normalisation on every path, shape arithmetic included."""
        head: set[ir.Node] = set()
        for node in self.nodes:
            sources = [v.producer() for v in self._variables(node)]
            if node.op_type not in LINEAR | NORMALIZATIONS and all(s is None or s in head for s in sources):
                head.add(node)
        return head

    def _tail(self) -> set[ir.Node]:
        """The nodes after the last convolution, product or normalisation on every path."""
        tail: set[ir.Node] = set()
        for node in reversed(self.graph):
            if node.op_type not in LINEAR | NORMALIZATIONS and all(c in tail for c in _readers(node)):
                tail.add(node)
        return tail.intersection(self.nodes)

    def _grow_over_normalizations(self) -> None:
        """Take in normalisations that are written as primitives, and the scale and bias of native ones in float32.

        It starts at sums and means, passes over the small tensors computed from them, and takes in the nodes that
        subtract, multiply or divide by these. From there, and from native nodes in float32, it goes on to scale and
        bias.
        """
        small: set[ir.Value] = set()
        normal: set[ir.Value] = set()
        for node in self.nodes:
            inputs = set(self._variables(node))
            passes = inputs and node.op_type in MOVES | ELEMENTWISE
            applied = node.op_type in ("Sub", "Mul", "Div") and not small.isdisjoint(inputs)
            native = node.op_type in NORMALIZATIONS and node in self.wide
            if node.op_type in SUMS or (passes and inputs <= small):
                small.update(node.outputs)
            elif applied or native or (passes and inputs <= small | normal):
                normal.update(node.outputs)
            else:
                continue
            self.wide.add(node)

    def _grow_backwards(self) -> None:
        """Take in nodes that prepare a float32 operator's input (a square, an epsilon, a scale): its Cast moves up."""
        for node in reversed(self.nodes):
            readers = _readers(node)
            if node.op_type in ELEMENTWISE and len(set(self._variables(node))) == 1 and self.wide.issuperset(readers):
                self.wide.add(node)

    def _settle_moves(self, forced: set[ir.Node]) -> None:
        """Let nodes that only move data do so in the lower type, unless the data is float32 both before and after."""
        moves = [n for n in self.nodes if n not in forced and self._is_move(n)]
        self.wide.difference_update(moves)
        wanted: set[ir.Node] = set()
        for node in reversed(moves):
            is_output = any(o.is_graph_output() and o in self.floats for o in node.outputs)
            is_lower_output = is_output and not self.fp32_interface
            gives_no_float = not any(map(is_float, node.outputs))  # a Cast to integers or booleans
            if gives_no_float or (not is_lower_output and all(r in self.wide or r in wanted for r in _readers(node))):
                wanted.add(node)
        for node in moves:
            if node in wanted and all(self.type_of(v) == FLOAT for v in self._variables(node)):
                self.wide.add(node)

    def _is_move(self, node: ir.Node) -> bool:
        if node.op_type == "Cast":
            source = cast(ir.Value, node.inputs[0])
            return source in self.floats or source.dtype in SMALL_INTEGERS
        nearest = node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "nearest"
        return nearest or node.op_type in MOVES


def _readers(node: ir.Node) -> list[ir.Node]:
    return [r for o in node.outputs for r in o.consumers() if r.op_type not in ("Shape", "Size")]


def is_float(value: ir.Value | None) -> bool:
    return value is not None and isinstance(value.type, ir.TensorType) and value.type.dtype == FLOAT


def is_constant(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input()
