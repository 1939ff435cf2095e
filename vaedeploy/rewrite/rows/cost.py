"""What a piece costs: operations, and the bytes that its tensors take at the same time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from vaedeploy.graph.operations import operations_of
from vaedeploy.rewrite.rows.half import Half
from vaedeploy.rewrite.rows.layout import PROBES
from vaedeploy.rewrite.rows.operators import ELEMENTWISE

__all__ = ["Counter", "live_bytes"]

COPIED = frozenset(("Conv", "ConvTranspose"))
"""Operators whose input ONNX Runtime copies into a layout of its own."""


class Counter:
    """Counts operations of nodes of a half, by their names in its graphs with sizes."""

    def __init__(self, half: Half) -> None:
        self._nodes = [{node.name: node for node in model.graph} for model in half.shapes.sized]

    def count(self, nodes: Sequence[ir.Node]) -> tuple[int, int]:
        """Operations for each element of the latent's plane, and for each pair of elements.

        These are a and b in a * h * w + b * (h * w)^2, from two sizes of the latent.
        """
        areas = [height * width for height, width in PROBES]
        totals = [0, 0]
        for node in nodes:
            for index, sized in enumerate(self._nodes):
                totals[index] += operations_of(sized[node.name]) or 0
        per_element = [total / area for total, area in zip(totals, areas, strict=False)]
        slope = (per_element[1] - per_element[0]) / (areas[1] - areas[0])
        quadratic = round(slope) if slope > 0.5 else 0
        return max(0, round(per_element[0] - quadratic * areas[0])), quadratic


def live_bytes(
    half: Half, nodes: Sequence[ir.Node], kept: Collection[ir.Value], ignored: Collection[ir.Value] = ()
) -> int:
    """The most bytes in use at the same time, per element of the latent's plane.

    kept: tensors in use from the first to the last node, the inputs and outputs. ignored: tensors that are stored
    elsewhere. Matrices of all positions by all positions are left out: attention computes them in blocks.
    """
    sizes: Mapping[ir.Value, float] = {
        value: half.elements(value) * (value.dtype.itemsize if value.dtype is not None else 4)
        for node in nodes
        for value in (*node.inputs, *node.outputs)
        if value is not None and _counts(half, value) and value not in ignored
    }
    last = {value: index for index, node in enumerate(nodes) for value in node.inputs if value is not None}
    given = {value for value in kept if value in sizes}
    made = {value for node in nodes for value in node.outputs}
    live = {value for value in given if value not in made}
    most = sum(sizes[value] for value in live)
    for index, node in enumerate(nodes):
        outputs = [value for value in node.outputs if value in sizes]
        dying = {v for v in node.inputs if v in live and last[v] == index and v not in given and v is not None}
        extra = sum(sizes[value] for value in outputs)
        if node.op_type in ELEMENTWISE and any(sizes[value] >= extra for value in dying):
            extra = 0  # computed in the memory of an input
        elif node.op_type in COPIED:
            extra += sum(sizes.get(value, 0) for value in node.inputs[:1] if value is not None)
        elif node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Identity") and dying:
            extra = 0
        most = max(most, sum(sizes[value] for value in live) + extra)
        live -= dying
        live.update(value for value in outputs if last.get(value, -1) > index or value in given)
    return round(most)


def _counts(half: Half, value: ir.Value) -> bool:
    return half.has_rows(value) and not half.layouts[value].whole
