"""Counts the floating-point operations that a graph takes at given sizes of its symbolic dimensions.

A multiplication whose product is added to a sum counts as two operations (2 x MAC), at padded and cropped positions
too:

    Conv, NhwcConv  2 * outputs * (input channels / groups) * kernel area
    ConvTranspose   2 * inputs * (output channels / groups) * kernel area
    MatMul, Gemm    2 * outputs * length of the sums
    Attention, MultiHeadAttention    their two products: 2 * batch * queries * keys * (width of queries + of values)

Everything else is left out: biases, elementwise functions, normalisation, Softmax, Resize. Counted like this,
the decoder of Stable Diffusion's VAE takes 2.515 TFLOP and its encoder 1.117 TFLOP at 512x512.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from vaedeploy.graph.sizes import static_shape, with_sizes

__all__ = ["GraphOperations", "OperatorCount", "count_operations", "operations_of", "weight_bytes"]

CONVOLUTIONS = ("Conv", "NhwcConv", "ConvTranspose")

COUNTED = (*CONVOLUTIONS, "MatMul", "Gemm", "Attention", "MultiHeadAttention")


@dataclass(frozen=True)
class OperatorCount:
    """All nodes of one operator: how many there are, and the sum of their floating-point operations."""

    operator: str
    nodes: int
    operations: int


@dataclass(frozen=True)
class GraphOperations:
    """Operations and weights of a graph at one size.

    operators: the counted operators, the one with the most operations first. weight_bytes: bytes of all initializers,
    each counted once. uncounted: names of nodes whose operations are not known, because their shapes are not known or
    because they run a graph inside (If, Loop, Scan, functions).
    """

    operators: tuple[OperatorCount, ...]
    weight_bytes: int
    uncounted: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Floating-point operations of all counted operators."""
        return sum(operator.operations for operator in self.operators)

    @property
    def convolutions(self) -> int:
        """Floating-point operations of convolutions, transposed ones included."""
        return sum(o.operations for o in self.operators if o.operator in CONVOLUTIONS)


def count_operations(model: ir.Model, shapes: Mapping[str, int]) -> GraphOperations:
    """Count the floating-point operations of the main graph, and the bytes of its weights without reading them.

    shapes: a size for each symbolic dimension of the inputs, such as {"batch": 1, "latent_height": 64,
    "latent_width": 64} for a decoder at 512x512. ``model`` is not changed.

    Raises InputError where a dimension has no name or no size, or ``shapes`` names a dimension that no input has.
    """
    sized = with_sizes(model, shapes)
    nodes: dict[str, int] = {}
    operations: dict[str, int] = {}
    uncounted = []
    for node in sized.graph:
        if node.op_type not in COUNTED:
            if _runs_a_graph(node, model):
                uncounted.append(node.name or node.op_type)
            continue
        found = operations_of(node)
        if found is None:
            uncounted.append(node.name or node.op_type)
            continue
        nodes[node.op_type] = nodes.get(node.op_type, 0) + 1
        operations[node.op_type] = operations.get(node.op_type, 0) + found
    counts = [OperatorCount(operator, nodes[operator], total) for operator, total in operations.items()]
    ordered = tuple(sorted(counts, key=lambda count: -count.operations))
    return GraphOperations(ordered, weight_bytes(model), tuple(uncounted))


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, each counted once; they are not read."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _runs_a_graph(node: ir.Node, model: ir.Model) -> bool:
    attribute_types = {attribute.type for attribute in node.attributes.values()}
    return node.op_identifier() in model.functions or not attribute_types.isdisjoint(
        (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    )


def operations_of(node: ir.Node) -> int | None:
    """Floating-point operations of one node of a graph with sizes: 0 for operators that are not counted, and None where
    a shape that determines them is not known.
    """
    if node.op_type not in COUNTED:
        return 0
    shapes = [static_shape(value) for value in (*node.inputs[:3], *node.outputs[:1])]
    if None in shapes[:2] or shapes[-1] is None:
        return None
    first, second, *_, output = (shape or () for shape in shapes)
    if node.op_type in ("Conv", "NhwcConv"):
        return 2 * math.prod(output) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(first) * math.prod(second[1:])
    if node.op_type in ("MatMul", "Gemm"):
        length = first[0] if node.attributes.get_int("transA", 0) else first[-1]
        return 2 * math.prod(output) * length
    queries, keys, values = shapes[:3]
    if queries is None or keys is None or values is None or not len(queries) == len(keys) == len(values):
        return None  # another layout, such as queries, keys and values packed into one tensor
    return 2 * math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])
