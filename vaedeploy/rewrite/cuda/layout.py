"""The channels-last counterparts of a graph's values, while a rule goes over the graph.

Images are (B, C, H, W) or (B, H, W, C); sequences, as the middle of a VAE has them, (B, C, L) or (B, L, C).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from vaedeploy.graph.edit import add_constant, free_name

__all__ = ["FIRST", "LAST", "Layouts", "channels_last"]

LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1)}
"""Rank -> the permutation that moves the channels from second to last."""

FIRST = {3: (0, 2, 1), 4: (0, 3, 1, 2)}
"""Rank -> the permutation that moves them back."""


def channels_last(shape: ir.Shape | None) -> list[Any]:
    """The dimensions of a channels-first image or sequence in channels-last order."""
    assert shape is not None
    return [shape[axis] for axis in LAST[len(shape)]]


class Layouts:
    """What a graph has channels-last so far.

    last: channels-first value -> the same value channels-last. keep: names of nodes that must stay in float32; new
    nodes that stand for one of them are added.

    Three steps turn a node: ``add`` the nodes that compute its output channels-last, from ``channels_last`` of its
    inputs; ``turn`` it; and ``finish`` once all nodes are visited.
    """

    def __init__(self, graph: ir.Graph, keep: set[str]) -> None:
        self.graph, self.keep = graph, keep
        self.last: dict[ir.Value, ir.Value] = {}
        self._turned: list[ir.Node] = []
        values = [*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]
        self._names = {*(value.name for value in values), *(node.name for node in graph)}

    def channels_last(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """``value`` channels-last, by a Transpose in front of ``before`` if no node gives it so."""
        if value not in self.last:
            self.last[value] = self._transposed(before, value, LAST)
        return self.last[value]

    def add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[Any],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """The output of a new node in front of ``before``, one of those that stand for it, with its output's type."""
        output = self._insert(before, op_type, inputs, shape, attributes, domain)
        if before.name in self.keep:
            self.keep.add(str(output.producer().name))  # type: ignore[union-attr]
        return output

    def numbers(self, before: ir.Node, suffix: str, *numbers: int) -> ir.Value:
        """A constant of integers for a node that is added in front of ``before``."""
        return self.constant(f"{before.outputs[0].name}.{suffix}", np.array(numbers, np.int64))

    def constant(self, name: str, array: Any) -> ir.Value:
        return add_constant(self.graph, self._free(name), array)

    def turn(self, node: ir.Node, output: ir.Value) -> None:
        """Note that ``output`` is the one output of ``node`` channels-last."""
        self.last[node.outputs[0]] = output
        self._turned.append(node)

    def finish(self) -> int:
        """Remove the turned nodes, and give what still reads their outputs Transposes to read from.

        Returns how many there were.
        """
        for node in reversed(self._turned):  # readers before what they read
            value = node.outputs[0]
            if value.is_graph_output() or value.uses():
                first = self._transposed(node, self.last[value], FIRST)
                name, value.name = value.name, None
                value.replace_all_uses_with(first, replace_graph_outputs=True)
                first.name, first.shape, first.type = name, value.shape, value.type
            self.graph.remove(node, safe=True)
        return len(self._turned)

    def _transposed(self, before: ir.Node, value: ir.Value, permutations: Mapping[int, tuple[int, ...]]) -> ir.Value:
        assert value.shape is not None
        perm = permutations[len(value.shape)]
        output = self._insert(before, "Transpose", [value], [value.shape[axis] for axis in perm], {"perm": perm})
        output.type = value.type
        return output

    def _insert(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[Any],
        attributes: Mapping[str, Any] | None,
        domain: str = "",
    ) -> ir.Value:
        of = before.outputs[0]
        name = self._free(f"{of.name}.last")
        output = ir.Value(name=name, type=of.type, shape=ir.Shape(shape))
        node = ir.node(op_type, inputs, attributes, domain=domain, outputs=[output], name=name)
        node.metadata_props.update(before.metadata_props)
        self.graph.insert_before(before, node)
        return output

    def _free(self, name: str) -> str:
        name = free_name(name, self._names)
        self._names.add(name)
        return name
