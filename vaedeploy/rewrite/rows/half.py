"""A half of a VAE as a graph that knows where its rows are: what is read where, and where it can be cut.

A cut is a tensor at which one piece ends and others begin:

- what a normalisation reads, since its statistics need all rows before the first can be normalised;
- what is read whole, and what is computed from whole tensors: keys, values, sums over positions;
- the first place after attention, so that it computes no row twice;
- the narrowest place before the image grows and after it shrinks, and each enlarged tensor: a large tensor need not be
  stored if it can be computed again from a small one;
- the places between blocks, once the nodes since the last cut read ``FAR`` rows;
- what several pieces would otherwise each compute by multiplications.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vaedeploy.graph.edit import constant_of
from vaedeploy.graph.graph import Graph
from vaedeploy.graph.operations import COUNTED
from vaedeploy.rewrite.rows.layout import PROBES, Layout, NotByRowsError, Shapes
from vaedeploy.rewrite.rows.operators import read_of
from vaedeploy.rewrite.rows.reading import WHOLE, Reads, Window
from vaedeploy.rewrite.rows.statistics import Statistics, take_statistics_as_inputs

__all__ = ["Half"]

FINITE = "finite"
"""The output that is left out: whoever joins the strips finds out whether all numbers are finite."""

FAR = 8
"""The most rows above and below a strip that one piece reads, if the graph has a place for a cut."""


class Half:
    """One half with its statistics as inputs. ``graph``, in float32 with padding and upsampling folded, is changed.

    Raises NotByRowsError where it cannot be computed by rows.
    """

    def __init__(self, graph: Graph, factor: int) -> None:
        model = graph.model
        self.statistics: list[Statistics] = take_statistics_as_inputs(model)
        self.opset = model.graph.opset_imports.get("", 0)
        for output in [output for output in model.graph.outputs if output.name == FINITE]:
            model.graph.outputs.remove(output)
        RemoveUnusedNodesPass()(model)
        self.model, self.input = model, model.graph.inputs[0]
        self.shapes = Shapes(graph, factor)
        self.sizes = _computed_from_sizes(model.graph)
        self.nodes = [node for node in model.graph if not self.sizes.issuperset(node.outputs) and not _constant(node)]
        self.layouts: dict[ir.Value, Layout] = {}
        self.reads: dict[ir.Node, Reads] = {}
        self._find_rows()

    def _find_rows(self) -> None:
        (axis,) = self.shapes.tall_axes(self.input)
        self.layouts[self.input] = Layout(axis, self.shapes.sizes(self.input)[axis].factor)
        for node in self.nodes:
            reads = self.reads[node] = read_of(node, self.layouts, self.shapes)
            self.layouts.update(zip(node.outputs, reads.outputs, strict=True))
        for value in self.outputs:
            if not self.has_rows(value):
                raise NotByRowsError(str(value.name), "the half gives it, and it has no rows")

    @property
    def outputs(self) -> list[ir.Value]:
        return list(self.model.graph.outputs)

    def has_rows(self, value: ir.Value) -> bool:
        return value in self.layouts and self.layouts[value].axis is not None

    def scale(self, value: ir.Value) -> int:
        return self.layouts[value].scale

    @cached_property
    def position(self) -> dict[ir.Value, int]:
        """Value -> where in the order of nodes it is computed."""
        return {value: index for index, node in enumerate(self.nodes) for value in node.outputs}

    @cached_property
    def cuts(self) -> list[ir.Value]:
        """The tensors at which the half is cut, in the order in which they are computed; its outputs are among them."""
        cuts = {*(statistics.x for statistics in self.statistics), *self.outputs}
        for node in self.nodes:
            whole = [index for index, read in self.reads[node].inputs.items() if read == WHOLE]
            cuts.update(value for index in whole if (value := node.inputs[index]) is not None)
            if whole and not any(map(self.has_rows, node.outputs)):
                cuts.update(node.outputs)
            if self._enlarges(node):
                cuts.update(node.outputs)
        self._cut_behind_attention(cuts)
        self._cut_between_scales(cuts)
        self._cut_what_reads_far(cuts)
        cuts.discard(self.input)
        while shared := self._multiplied_twice(cuts):
            cuts.add(shared)
        for value in cuts:
            if self.has_rows(value) and self.layouts[value].padded:
                raise NotByRowsError(str(value.name), "it is padded, and the half would have to be cut there")
        return sorted(cuts, key=self.position.__getitem__)

    def _enlarges(self, node: ir.Node) -> bool:
        """Whether a node only repeats rows."""
        return node.op_type == "Resize" and self.scale(node.outputs[0]) > self.scale(_first(node))

    @cached_property
    def narrow(self) -> list[ir.Value]:
        """Tensors with rows, in order, on which everything later depends, without the half's input and its enlarged
        form.
        """
        left: dict[ir.Value, int] = {}
        for node in self.nodes:
            for value in node.inputs:
                if value is not None and self.has_rows(value):
                    left[value] = left.get(value, 0) + 1
        for value in self.outputs:
            left[value] = left.get(value, 0) + 1
        live: set[ir.Value] = set()
        found: list[ir.Value] = []
        for node in self.nodes:
            for value in node.inputs:
                if value in left:
                    left[value] -= 1
                    if not left[value]:
                        live.discard(value)
            if not self._enlarges(node):
                live.update(value for value in node.outputs if self.has_rows(value) and left.get(value))
            if len(live) == 1 and not self.layouts[next(iter(live))].padded:
                found += [value for value in live if not found or value is not found[-1]]
        return found

    def _cut_behind_attention(self, cuts: set[ir.Value]) -> None:
        """Cut before anything else makes attention read more queries than a strip has."""
        for index, node in enumerate(self.nodes):
            if WHOLE in self.reads[node].inputs.values() and self.has_rows(node.outputs[0]):
                cuts.update([value for value in self.narrow if self.position[value] >= index][:1])

    def _cut_between_scales(self, cuts: set[ir.Value]) -> None:
        since: list[ir.Value] = []  # narrow places of this scale since the last cut
        for value in self.narrow:
            if since and self.scale(since[-1]) < self.scale(value):
                fewest = min(map(self.elements, since))
                cuts.add([place for place in since if self.elements(place) == fewest][-1])
            elif since and self.scale(since[-1]) > self.scale(value):
                cuts.add(value)
            if value in cuts or (since and self.scale(since[-1]) != self.scale(value)):
                since = []
            since.append(value)

    def elements(self, value: ir.Value) -> float:
        """How many elements a tensor has for each element of a channel of the latent."""
        height, width = PROBES[0]
        return math.prod(self.shapes.of(value)[0]) / (height * width)

    def _cut_what_reads_far(self, cuts: set[ir.Value]) -> None:
        previous = None
        for value in self.narrow:
            if previous is not None and previous not in cuts and value not in cuts:
                nodes = self.between([value], cuts)
                if max((max(need) for need in self.needs(nodes, [value]).values()), default=0) > FAR:
                    cuts.add(previous)
            previous = value

    def _multiplied_twice(self, cuts: Collection[ir.Value]) -> ir.Value | None:
        """A tensor, the last of a chain, that several pieces would each compute by multiplications, or None."""
        counts: dict[ir.Node, int] = {}
        for targets in self.targets(sorted(cuts, key=self.position.__getitem__)):
            for node in self.between(targets, cuts):
                counts[node] = counts.get(node, 0) + 1
        for node in self.nodes:
            if counts.get(node, 0) < 2 or node.op_type not in COUNTED:
                continue
            value = node.outputs[0]
            while len(readers := {reader for reader, _ in value.uses()}) == 1:
                reader = readers.pop()
                if counts.get(reader, 0) < 2 or len(reader.outputs) > 1 or not self.has_rows(reader.outputs[0]):
                    break
                value = reader.outputs[0]
            return value
        return None

    def targets(self, cuts: Sequence[ir.Value]) -> Iterator[list[ir.Value]]:
        """What each piece computes: one cut; the last piece computes everything that the half gives."""
        for cut in cuts:
            if cut not in self.outputs:
                yield [cut]
        yield self.outputs

    def between(self, targets: Iterable[ir.Value], cuts: Collection[ir.Value]) -> list[ir.Node]:
        """The nodes that compute ``targets`` from the cuts before them, in order."""
        wanted, found = list(targets), set[ir.Node]()
        begun = set(wanted)
        while wanted:
            value = wanted.pop()
            node = value.producer()
            if (value in cuts and value not in begun) or node is None or node in found or node not in self.reads:
                continue
            found.add(node)
            wanted += [source for source in node.inputs if source is not None]
        return [node for node in self.nodes if node in found]

    def needs(self, nodes: Sequence[ir.Node], targets: Iterable[ir.Value]) -> dict[ir.Value, tuple[int, int]]:
        """Tensor with rows -> how many rows above and below it are read to compute ``targets`` without any more."""
        needs = dict.fromkeys(targets, (0, 0))
        for node in reversed(nodes):
            wanted = [needs[value] for value in node.outputs if value in needs]
            if not wanted:
                continue
            above, below = (max(side) for side in zip(*wanted, strict=True))
            for index, window in self.reads[node].inputs.items():
                value = node.inputs[index]
                if isinstance(window, Window) and value is not None:
                    old, new = needs.get(value, (0, 0)), window.needed(above, below)
                    needs[value] = max(old[0], new[0]), max(old[1], new[1])
        return needs


def _computed_from_sizes(graph: ir.Graph) -> set[ir.Value]:
    """Tensors that are computed from shapes, or from shapes and constants, and from nothing else."""
    found: set[ir.Value] = set()
    for node in graph:
        read = [value for value in node.inputs if value is not None and constant_of(value) is None]
        if node.op_type in ("Shape", "Size") or (read and found.issuperset(read)):
            found.update(node.outputs)
    return found


def _constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" or (node.op_type == "Identity" and constant_of(node.outputs[0]) is not None)


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value
