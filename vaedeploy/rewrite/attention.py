"""Computes attention over blocks of queries, so that its matrix of scores is never whole in memory.

With queries q (..., N, D), keys k (..., D, M) already transposed, and values v (..., M, E), exporters write

    y = MatMul(Softmax(MatMul(q, k)), v).

Softmax runs along the keys, so each row of y depends only on its own row of q:

    y = Concat over i of MatMul(Softmax(MatMul(q[i * block : (i + 1) * block], k)), v).

A Loop computes the second form. The number of blocks follows from the sizes at run time: the fewest blocks that keep
one block's scores within ``SCORES_BYTES``, so that a small image is one block. Only standard operators are used.

For one head of 512 channels as torch's dynamo exporter writes it, ONNX Runtime's peak memory on the CPU, inputs
included, is 0.38 GiB instead of 2.19 GiB at 16,384 tokens (a 1024x1024 image). At 65,536 tokens it is 1.12 GiB, and the
first form's scores alone take 16 GiB. ONNX Runtime's own MultiHeadAttention takes 0.95 GiB there; at 4,096 tokens it is
8.6e-7 (relative L2) off float64, where both forms above are 3.9e-7 off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from vaedeploy.rewrite.outcome import Outcome, Refusal

__all__ = [
    "SCORES_BYTES",
    "Nodes",
    "attention_path",
    "block_shape",
    "chunk_attention",
    "operands",
    "why_not",
]

SCORES_BYTES = 64 * 2**20
"""Most bytes that one block's scores may take: in float32, all scores of 4,096 tokens, or 256 rows of 65,536 tokens.

Where there are several blocks, all but the last take 32 MiB or more. From that size on, glibc maps each allocation by
itself and returns it to the system. Smaller ones leave holes in the heap between the results that stay: with blocks of
16 MiB the holes took 67 MB at 12,000 tokens.
"""

FIRST_OPSET = 15
"""The first opset in which Shape has a start and an end."""

INDEX = ir.TensorType(ir.DataType.INT64)

FLAG = ir.TensorType(ir.DataType.BOOL)

Dimension = int | ir.SymbolicDim | None


def chunk_attention(model: ir.Model, *, scores_bytes: int = SCORES_BYTES) -> Outcome:
    """Compute each attention of ``model``'s main graph over blocks of queries, in place.

    Looks at every Softmax. Casts may lie between it and the two products, and before it multiplications and divisions
    by a single number. Types and ranks must be known: infer shapes first.

    scores_bytes: the most bytes that one block's scores may take; a block has at least one row in any case. ValueError
    below 1.
    """
    if scores_bytes < 1:
        raise ValueError(f"scores_bytes is {scores_bytes}; it must be at least 1")
    matches, refusals = 0, []
    for softmax in [node for node in model.graph if node.op_type == "Softmax" and node.domain == ""]:
        path = _find_attention(softmax, model.graph.opset_imports.get("", 0), scores_bytes)
        if isinstance(path, str):
            refusals.append(Refusal(softmax.name or "", path))
        else:
            _replace(model.graph, path, max(1, scores_bytes // _score_bytes(path)))
            matches += 1
    return Outcome("chunk_attention", matches, tuple(refusals))


def _find_attention(softmax: ir.Node, opset: int, scores_bytes: int) -> list[ir.Node] | str:
    """The nodes of the attention around ``softmax``, or why it is left alone."""
    path = attention_path(softmax)
    if isinstance(path, str):
        return path
    return why_not(path, softmax, opset) or _fits(path, softmax, scores_bytes) or path


def attention_path(softmax: ir.Node) -> list[ir.Node] | str:
    """The nodes from the product of queries and keys to the product with the values, or why there is no such path."""
    path = [softmax]
    while path[0].op_type != "MatMul":
        value = path[0].inputs[1 if path[0].op_type == "Mul" and _is_number(path[0].inputs[0]) else 0]
        node = None if value is None else value.producer()
        if value is None or node is None:
            return "the softmax's input is not a product of queries and keys"
        if not _has_one_reader(value):
            return "the scores are read by something else too"
        operator = _operator(node)
        if operator in ("Add", "Sub", "Where"):
            return "a mask or a bias is added to the scores"
        scales = operator in ("Mul", "Div") and any(_is_number(operand) for operand in node.inputs)
        if not scales and operator not in ("Cast", "MatMul"):
            return f"the softmax's input comes from {operator}, not from a product of queries and keys"
        path.insert(0, node)
    while path[-1].op_type != "MatMul":
        value = path[-1].outputs[0]
        if not _has_one_reader(value):
            return "the softmax's output is not read only by one product with values"
        ((node, index),) = value.uses()
        if node.graph is not softmax.graph:
            return "the softmax's output is read in a subgraph"
        if _operator(node) not in ("Cast", "MatMul") or index != 0:
            return f"the softmax's output goes to {_operator(node)}, not to a product with values from its left"
        path.append(node)
    return path


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}".removeprefix("::")


def _has_one_reader(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _is_number(value: ir.Value | None) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1


def why_not(path: Sequence[ir.Node], softmax: ir.Node, opset: int) -> str | None:
    """Why blocks of rows may not be computed separately; None where they may."""
    if opset < FIRST_OPSET:
        return f"opset {opset} is older than {FIRST_OPSET}"
    q, k, v = (value.shape for value in operands(path))
    scores = softmax.outputs[0].shape
    if q is None or k is None or v is None or scores is None or any(node.outputs[0].dtype is None for node in path):
        return "the rank or the type of queries, keys or values is not known; infer shapes first"
    if min(len(q), len(k), len(v)) < 2:
        return "queries, keys or values are a vector, not a matrix"
    if softmax.attributes.get_int("axis", -1) not in (-1, len(scores) - 1):
        return "the softmax is not along the keys"
    return None


def _fits(path: Sequence[ir.Node], softmax: ir.Node, scores_bytes: int) -> str | None:
    """Why blocks are not needed, if the scores are small at every size; None where they may be large."""
    scores = softmax.outputs[0].shape or ()
    known = [size for size in scores if isinstance(size, int)]
    needed = math.prod(known) * _score_bytes(path)
    if len(known) == len(scores) and needed <= scores_bytes:
        return f"its scores take {needed} bytes at any time, and {scores_bytes} are allowed"
    return None


def operands(path: Sequence[ir.Node]) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Queries (..., N, D), keys (..., D, M) and values (..., M, E)."""
    q, k, v = *path[0].inputs, path[-1].inputs[1]
    if q is None or k is None or v is None:
        raise ValueError(f"{path[0].name} or {path[-1].name} is a MatMul with an operand left out")
    return q, k, v


def _score_bytes(path: Sequence[ir.Node]) -> int:
    """Bytes of one score, in the widest type that it has along ``path``."""
    return max(math.ceil(node.outputs[0].dtype.itemsize) for node in path if node.outputs[0].dtype is not None)


class Nodes(list[ir.Node]):
    """New nodes in order, named after the attention that they are part of."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def add(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        type: ir.TypeProtocol | None = INDEX,
        shape: Sequence[Dimension | str] | None = (1,),
        **attributes: Any,
    ) -> ir.Value:
        """The one output of a new node: by default a size, int64 (1,)."""
        name = f"{self.prefix}.{len(self)}_{op_type}"
        output = ir.Value(name=name, type=type, shape=None if shape is None else ir.Shape(shape))
        self.append(ir.node(op_type, inputs, attributes, outputs=[output], name=name))
        return output

    def add_block(self, path: Sequence[ir.Node], q: ir.Value, block: ir.Value, prefix: str | None = None) -> ir.Value:
        """The attention of ``path`` for a block of the rows of its queries ``q``. prefix: see ``block_shape``."""
        old, new = q, block
        for node in path:
            # A product takes the block's rows as its left operand; its right one stays whole, even if it is the same.
            inputs = (
                [new, node.inputs[1]] if node.op_type == "MatMul" else [new if x is old else x for x in node.inputs]
            )
            old = node.outputs[0]
            shape = block_shape(old.shape, prefix if node is not path[-1] else None)
            new = self.add(node.op_type, *inputs, type=old.type, shape=shape, **node.attributes)
        return new

    def ceil_div(self, a: ir.Value, b: ir.Value, one: ir.Value) -> ir.Value:
        """The quotient a / b rounded up, as (a - 1) // b + 1 with truncation.

        It is 1 for a = 0, so that an empty batch divides no size by zero.
        """
        return self.add("Add", self.add("Div", self.add("Sub", a, one), b), one)


def _replace(graph: ir.Graph, path: Sequence[ir.Node], block_scores: int) -> None:
    """Replace ``path`` by the loop. block_scores: how many scores a block may have."""
    q, k, _ = operands(path)
    result = path[-1].outputs[0]
    assert result.dtype is not None
    nodes = Nodes(f"{result.name}.blocks")
    one, scores = nodes.add("Constant", value_ints=[1]), nodes.add("Constant", value_ints=[block_scores])
    rows, depth = nodes.add("Shape", q, start=-2, end=-1), nodes.add("Shape", q, start=-1)
    all_rows = nodes.add("Div", nodes.add("Size", q, shape=()), depth)
    all_scores = nodes.add("Mul", all_rows, nodes.add("Shape", k, start=-1))
    block = nodes.ceil_div(rows, nodes.ceil_div(all_scores, scores, one), one)
    count = nodes.add("Squeeze", nodes.ceil_div(rows, block, one), shape=())
    blocks = ir.SequenceType(ir.TensorType(result.dtype))
    empty = nodes.add("SequenceEmpty", type=blocks, shape=None, dtype=result.dtype.value)
    body = _body(path, block, blocks, Nodes(f"{nodes.prefix}.body"))
    # ONNX allows a Loop without a condition, but not every runtime takes that as true.
    condition = nodes.add("Constant", type=FLAG, shape=(), value=ir.tensor(np.array(True)))
    results = nodes.add("Loop", count, condition, empty, type=blocks, shape=None, body=body)
    joined = nodes.add("ConcatFromSequence", results, axis=-2)
    ir.convenience.replace_nodes_and_values(graph, path[-1], path, nodes, [result], [joined])


def _body(path: Sequence[ir.Node], block: ir.Value, blocks: ir.SequenceType, nodes: Nodes) -> ir.Graph:
    """The loop's body: (index of a block, condition, results before it) -> (condition, results with this block's)."""
    q, _, _ = operands(path)
    index = ir.Value(name=f"{nodes.prefix}.index", type=INDEX, shape=ir.Shape([]))
    condition = ir.Value(name=f"{nodes.prefix}.going", type=FLAG, shape=ir.Shape([]))
    before = ir.Value(name=f"{nodes.prefix}.before", type=blocks)
    same_condition = nodes.add("Identity", condition, type=FLAG, shape=())
    start, axis = nodes.add("Mul", index, block), nodes.add("Constant", value_ints=[-2])
    end = nodes.add("Add", start, block)  # past the last row in the last block, where Slice stops at the last row
    rows = nodes.add("Slice", q, start, end, axis, type=q.type, shape=block_shape(q.shape))
    new = nodes.add_block(path, q, rows, nodes.prefix)
    after = nodes.add("SequenceInsert", before, new, type=blocks, shape=None)
    return ir.Graph([index, condition, before], [same_condition, after], nodes=nodes, name=nodes.prefix)


def block_shape(shape: ir.Shape | None, prefix: str | None = None) -> Sequence[Dimension | str] | None:
    """``shape`` with an unknown number of rows.

    With a prefix, unknown sizes get names, which the scores share from the first product to the second, so that ONNX
    Runtime computes the softmax in the scores' own memory.
    """
    if shape is None:
        return None
    dimensions = [*shape[:-2], ir.SymbolicDim(None), shape[-1]]
    if prefix is None:
        return dimensions
    return [
        f"{prefix}.size_{len(shape) - i}" if dim == ir.SymbolicDim(None) else dim for i, dim in enumerate(dimensions)
    ]
