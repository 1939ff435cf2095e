"""Writes attention as one MultiHeadAttention of ONNX Runtime's CUDA provider, which keeps no matrix of scores.

With queries q (B, H, N, D), keys k (B, H, D, M) already transposed, and values v (B, H, M, E) of H heads, exporters
write

    y = MatMul(Softmax(MatMul(q, k) * s), v),

and without H where there is one head. MultiHeadAttention takes the three as (B, N, H * D), (B, M, H * D) and
(B, M, H * E), and sums in float32. Where the provider has no kernel that keeps scores in registers for these sizes, it
computes them as above.

Nothing may be broadcast: B and H must be the same in all three, whatever the sizes of the graph's inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from vaedeploy.errors import InputError
from vaedeploy.graph.edit import add_constant, constant_of
from vaedeploy.graph.sizes import with_sizes
from vaedeploy.rewrite.attention import attention_path, operands
from vaedeploy.rewrite.cuda.operators import DOMAIN
from vaedeploy.rewrite.doubling import PROBES
from vaedeploy.rewrite.outcome import Outcome, Refusal

__all__ = ["fuse_attention"]

Shapes = Mapping[str, Sequence[int | ir.SymbolicDim] | None]
"""Name of a value -> its shape, None where not even the rank is known."""


def fuse_attention(model: ir.Model, keep: set[str]) -> Outcome:
    """Fuse each attention of a float32 ``model``'s main graph, in place. keep: see ``fuse_group_norm``."""
    matches, refusals = 0, []
    softmaxes = [node for node in model.graph if node.op_type == "Softmax" and node.domain == ""]
    first, second = (_probed(model, row) if softmaxes else {} for row in PROBES[:2])
    for softmax in softmaxes:
        path = attention_path(softmax)
        reason = path if isinstance(path, str) else _why_not(path, softmax, first, second)
        if isinstance(path, str) or reason is not None:
            refusals.append(Refusal(softmax.name or "", str(reason)))
            continue
        _replace(model.graph, path, first, keep)
        matches += 1
    if matches:
        model.opset_imports[DOMAIN] = 1
    return Outcome("fuse_attention", matches, tuple(refusals))


def _probed(model: ir.Model, sizes: Sequence[int]) -> Shapes:
    """The shape of each value when the open sizes of the graph's inputs are ``sizes``."""
    symbols = {str(dim) for value in model.graph.inputs for dim in value.shape or () if not isinstance(dim, int)}
    try:
        sized = with_sizes(model, dict(zip(sorted(symbols), sizes, strict=False)))
    except (InputError, ValueError):  # a size without a name, or with one that only its exporter understands
        sized = model
    values = [*sized.graph.inputs, *(output for node in sized.graph for output in node.outputs)]
    return {str(value.name): None if value.shape is None else list(value.shape) for value in values}


def _why_not(path: Sequence[ir.Node], softmax: ir.Node, first: Shapes, second: Shapes) -> str | None:
    """first, second: shapes at two choices of sizes. What is equal at large primes is always equal."""
    names = [str(value.name) for value in (*operands(path), path[-1].outputs[0])]
    shapes = [first.get(name) or () for name in names]
    rank = len(shapes[0])
    if rank not in (3, 4) or any(len(shape) != rank for shape in shapes):
        return "queries, keys and values are not known to be all (B, N, D) or all (B, H, N, D)"
    around = {dim if isinstance(dim, int) else None for shape in shapes for dim in shape[:-2]}
    if None in around or len({tuple(shape[:-2]) for shape in shapes}) > 1:
        return "queries, keys and values are not known to have the same batch and heads"
    if rank == 4 and (second[names[0]] or ())[1:2] != shapes[0][1:2]:
        return "the number of heads is not fixed"
    if softmax.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return "the softmax is not along the keys"
    return None if _scale(path) is not None else "the factor of the scores is not constant"


def _scale(path: Sequence[ir.Node]) -> float | None:
    """The product of the factors of the scores; None where one is an input of the graph."""
    scale = 1.0
    for node in path:
        if node.op_type not in ("Mul", "Div"):
            continue
        numbers = [tensor.numpy() for operand in node.inputs if (tensor := constant_of(operand)) is not None]
        if not numbers:
            return None
        number = float(numbers[0].reshape(-1)[0])
        scale = scale * number if node.op_type == "Mul" else scale / number
    return scale


def _replace(graph: ir.Graph, path: Sequence[ir.Node], shapes: Shapes, keep: set[str]) -> None:
    q, k, v = operands(path)
    result, name = path[-1].outputs[0], f"{path[-1].outputs[0].name}.attention"
    shape, scale = shapes[str(q.name)], _scale(path)
    assert shape is not None  # see ``_why_not``
    assert scale is not None
    nodes: list[ir.Node] = []

    def add(op_type: str, inputs: Sequence[ir.Value], domain: str = "", **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, domain=domain, name=f"{name}.{len(nodes)}")
        (output,) = node.outputs
        output.name, output.type = f"{name}.{len(nodes)}", result.type
        nodes.append(node)
        return output

    def numbers(suffix: str, *values: int) -> ir.Value:
        return add_constant(graph, f"{name}.{suffix}", np.array(values, np.int64))

    if len(shape) == 3:
        heads, rows = 1, [q, add("Transpose", [k], perm=(0, 2, 1)), v]
    else:
        heads, joined = int(shape[1]), numbers("joined", 0, 0, -1)  # type: ignore[arg-type]
        orders = ((q, (0, 2, 1, 3)), (k, (0, 3, 1, 2)), (v, (0, 2, 1, 3)))
        rows = [add("Reshape", [add("Transpose", [value], perm=perm), joined]) for value, perm in orders]
    y = add("MultiHeadAttention", rows, DOMAIN, num_heads=heads, scale=scale)
    if not keep.isdisjoint(str(node.name) for node in path):
        keep.add(str(nodes[-1].name))
    if len(shape) == 4:
        y = add("Transpose", [add("Reshape", [y, numbers("heads", 0, 0, heads, -1)])], perm=(0, 2, 1, 3))
    y.shape = result.shape
    ir.convenience.replace_nodes_and_values(graph, path[-1], path, nodes, [result], [y])
