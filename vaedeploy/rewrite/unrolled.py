"""Computes attention over a fixed number of blocks of queries, for TensorRT, which has no sequences.

With queries q (..., N, D), keys k (..., D, M) already transposed, values v (..., M, E), and C blocks of n = ceil(N / C)
rows,

    y = MatMul(Softmax(MatMul(q, k)), v)
      = (Concat over i < C of MatMul(Softmax(MatMul(p[i * n : (i + 1) * n], k)), v))[: N],

where p is q with C * n - N rows of zeros below it. Each row of y depends only on its own row of q.

TensorRT-RTX 1.7.1 plans memory for the scores of all N rows, and of their softmax, in every engine whose heads are too
wide for its fused kernel (512 channels in the SD VAE): 17 GB at 2048x2048 in fp16, whether an engine takes that size
alone or a range. It sees how small a block is only where the block's rows are a dimension of a Reshape: with rows from
a Slice, or from a Reshape's -1, it plans for all of them. For a range with 2**32 scores or more, the size that it
states leaves out the scores of the first form altogether.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from vaedeploy.graph.sizes import static_shape, with_sizes
from vaedeploy.rewrite.attention import Nodes, attention_path, block_shape, operands, why_not
from vaedeploy.rewrite.outcome import Outcome, Refusal

__all__ = ["unroll_attention"]

LARGE_BYTES = 4 * 2**30
"""The most bytes that the scores of all rows may take. The shipped profiles stay below it (3.5 GiB at 1664x1664 in
fp16): what blocks cost small images in the same engine has not been measured on a GPU. The 2**32 scores above take 8
GiB.
"""

BLOCK_BYTES = 2**29
"""The most bytes that one block's scores may take at the largest size: 16 blocks at 2048x2048 in fp16.

TensorRT-RTX keeps four to eight tensors of that size at once; with 8 blocks, the encoder's engine for 64 to 2048 pixels
a side takes 6.7 GB and with 16 it takes 4.6, of which 4.3 are the activations at the image's size.
"""


def unroll_attention(
    model: ir.Model,
    sizes: Sequence[Mapping[str, int]],
    *,
    large_bytes: int = LARGE_BYTES,
    block_bytes: int = BLOCK_BYTES,
) -> Outcome:
    """Compute each attention of ``model``'s main graph in blocks, in place, where its scores are large.

    sizes: the largest sizes that the graph will run at, each symbolic dimension -> size. Attention whose scores take no
    more than ``large_bytes`` at any of them is left alone. block_bytes: the most bytes of one block's scores there.
    """
    matches, refusals = 0, []
    sized = [with_sizes(model, each) for each in sizes]
    shapes = [{node.name: static_shape(node.outputs[0]) for node in each.graph} for each in sized]
    for softmax in [node for node in model.graph if node.op_type == "Softmax" and node.domain == ""]:
        path = attention_path(softmax)
        reason = path if isinstance(path, str) else why_not(path, softmax, model.graph.opset_imports.get("", 0))
        found = [each[softmax.name] for each in shapes]
        if isinstance(path, str) or reason:
            refusals.append(Refusal(softmax.name or "", str(reason)))
        elif any(shape is None for shape in found):
            refusals.append(Refusal(softmax.name or "", "the size of its scores does not follow from the inputs'"))
        else:
            most = max(math.prod(shape or ()) for shape in found) * math.ceil(path[0].outputs[0].dtype.itemsize)  # type: ignore[union-attr]  # see ``why_not``
            if most > large_bytes:
                _replace(model.graph, path, -(-most // block_bytes))
                matches += 1
            else:
                reason = f"its scores take {most} bytes at most, and {large_bytes} are allowed"
                refusals.append(Refusal(softmax.name or "", reason))
    return Outcome("unroll_attention", matches, tuple(refusals))


def _replace(graph: ir.Graph, path: Sequence[ir.Node], blocks: int) -> None:
    q, _, _ = operands(path)
    result = path[-1].outputs[0]
    assert q.shape is not None
    assert result.shape is not None
    rank = len(q.shape)
    nodes = Nodes(f"{result.name}.blocks")

    def ints(*values: int) -> ir.Value:
        return nodes.add("Constant", value_ints=list(values), shape=(len(values),))

    rows, count = nodes.add("Shape", q, start=-2, end=-1), ints(blocks)
    block = nodes.add("Div", nodes.add("Add", rows, ints(blocks - 1)), count)
    missing = nodes.add("Sub", nodes.add("Mul", block, count), rows)
    zero = ints(0)
    below = nodes.add("Concat", ints(*[0] * (2 * rank - 2)), missing, zero, axis=0, shape=(2 * rank,))
    padded = nodes.add("Pad", q, below, type=q.type, shape=block_shape(q.shape))
    ahead = [nodes.add("Shape", q, start=0, end=rank - 2, shape=(rank - 2,))] if rank > 2 else []
    depth = nodes.add("Shape", q, start=-1)
    split = nodes.add("Concat", *ahead, count, block, depth, axis=0, shape=(rank + 1,))
    stacked = [*q.shape[:-2], blocks, ir.SymbolicDim(None), q.shape[-1]]
    parts = nodes.add("Reshape", padded, split, type=q.type, shape=stacked)
    results = []
    for number in range(blocks):
        index = nodes.add("Constant", value_int=number, shape=())
        part = nodes.add("Gather", parts, index, axis=rank - 2, type=q.type, shape=block_shape(q.shape))
        results.append(nodes.add_block(path, q, part))
    joined = nodes.add(
        "Concat", *results, axis=len(result.shape) - 2, type=result.type, shape=block_shape(result.shape)
    )
    cut = nodes.add("Slice", joined, zero, rows, ints(-2), type=result.type, shape=list(result.shape))
    ir.convenience.replace_nodes_and_values(graph, path[-1], path, nodes, [result], [cut])
