"""Writes attention as one MultiHeadAttention of ONNX Runtime's CUDA provider, which keeps no matrix of scores.

With queries q (B, H, N, D), keys k (B, H, D, M) already transposed, and values v (B, H, M, E) of H heads, exporters
write

    y = MatMul(Softmax(MatMul(q, k) * s), v),

and without H where there is one head. MultiHeadAttention takes the three as (B, N, H * D), (B, M, H * D) and
(B, M, H * E), and sums in float32. Where the provider has no kernel that keeps scores in registers for these sizes, it
computes them as above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from vaedeploy.graph.edit import add_constant
from vaedeploy.rewrite.attention import attention_path
from vaedeploy.rewrite.cuda.operators import DOMAIN
from vaedeploy.rewrite.outcome import Outcome, Refusal

__all__ = ["fuse_attention"]


def fuse_attention(model: ir.Model, keep: set[str]) -> Outcome:
    """Fuse each attention of a float32 ``model``'s main graph, in place. keep: see ``fuse_group_norm``."""
    matches, refusals = 0, []
    for softmax in [node for node in model.graph if node.op_type == "Softmax" and node.domain == ""]:
        path = attention_path(softmax)
        reason = path if isinstance(path, str) else _why_not(path, softmax)
        if isinstance(path, str) or reason is not None:
            refusals.append(Refusal(softmax.name or "", str(reason)))
            continue
        _replace(model.graph, path, keep)
        matches += 1
    if matches:
        model.opset_imports[DOMAIN] = 1
    return Outcome("fuse_attention", matches, tuple(refusals))


def _why_not(path: Sequence[ir.Node], softmax: ir.Node) -> str | None:
    ranks = {None if value is None or value.shape is None else len(value.shape) for value in _operands(path)}
    if ranks not in ({3}, {4}):
        return "queries, keys and values are not all (B, N, D) or all (B, H, N, D)"
    if ranks == {4} and not isinstance(_operands(path)[0].shape[1], int):  # type: ignore[index]
        return "the number of heads is not known"
    if softmax.attributes.get_int("axis", -1) not in (-1, max(r for r in ranks if r) - 1):
        return "the softmax is not along the keys"
    return None


def _operands(path: Sequence[ir.Node]) -> tuple[ir.Value, ir.Value, ir.Value]:
    q, k, v = *path[0].inputs, path[-1].inputs[1]
    if q is None or k is None or v is None:
        raise ValueError(f"{path[0].name} or {path[-1].name} is a MatMul with an operand left out")
    return q, k, v


def _scale(path: Sequence[ir.Node]) -> float:
    """The product of the numbers that the scores are multiplied with."""
    scale = 1.0
    for node in path:
        for operand in node.inputs if node.op_type in ("Mul", "Div") else ():
            tensor = None if operand is None else ir.convenience.get_const_tensor(operand)
            if tensor is not None:
                number = float(tensor.numpy().reshape(-1)[0])
                scale = scale * number if node.op_type == "Mul" else scale / number
    return scale


def _replace(graph: ir.Graph, path: Sequence[ir.Node], keep: set[str]) -> None:
    q, k, v = _operands(path)
    result, name = path[-1].outputs[0], f"{path[-1].name}.attention"
    heads = q.shape[1] if q.shape is not None and len(q.shape) == 4 else 1
    assert isinstance(heads, int)  # see ``_why_not``
    nodes: list[ir.Node] = []

    def add(op_type: str, inputs: Sequence[ir.Value], domain: str = "", **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, domain=domain, name=f"{name}.{len(nodes)}")
        (output,) = node.outputs
        output.name, output.type = f"{name}.{len(nodes)}", result.type
        nodes.append(node)
        return output

    def numbers(suffix: str, *values: int) -> ir.Value:
        return add_constant(graph, f"{name}.{suffix}", np.array(values, np.int64))

    if q.shape is not None and len(q.shape) == 3:
        rows = q, add("Transpose", [k], perm=(0, 2, 1)), v
    else:
        joined = numbers("joined", 0, 0, -1)
        first = [add("Transpose", [value], perm=perm) for value, perm in ((q, (0, 2, 1, 3)), (k, (0, 3, 1, 2)))]
        first.append(add("Transpose", [v], perm=(0, 2, 1, 3)))
        rows = tuple(add("Reshape", [value, joined]) for value in first)  # type: ignore[assignment]
    y = add("MultiHeadAttention", rows, DOMAIN, num_heads=heads, scale=_scale(path))
    if not keep.isdisjoint(str(node.name) for node in path):
        keep.add(str(nodes[-1].name))
    if result.shape is not None and len(result.shape) == 4:
        y = add("Transpose", [add("Reshape", [y, numbers("heads", 0, 0, heads, -1)])], perm=(0, 2, 1, 3))
    y.shape = result.shape
    ir.convenience.replace_nodes_and_values(graph, path[-1], path, nodes, [result], [y])
