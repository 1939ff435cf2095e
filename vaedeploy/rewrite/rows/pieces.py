"""Pieces of a half as models of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, get_args

import numpy as np
import onnx_ir as ir

from vaedeploy.bundle.rows import COLUMNS, Cut, Dtype, Norm, Size
from vaedeploy.graph.edit import constant_of, free_name
from vaedeploy.rewrite.attention import chunk_attention
from vaedeploy.rewrite.rows.cost import Counter, live_bytes
from vaedeploy.rewrite.rows.half import Half
from vaedeploy.rewrite.rows.layout import NotByRowsError
from vaedeploy.rewrite.rows.reading import WHOLE

__all__ = ["PieceModel", "Pieces"]

ALIGNED = 4
"""Numbers of float32 in 16 bytes."""

INDEX = ir.TensorType(ir.DataType.INT64)


@dataclass(frozen=True)
class PieceModel:
    """A piece as a model, and what ``bundle.rows.Piece`` says of it besides the model's bytes and weights."""

    model: ir.Model
    targets: tuple[str, ...]
    strips: tuple[str, ...]
    whole: tuple[str, ...]
    norms: tuple[str, ...]
    columns: bool
    steps: int
    halo: int
    operations: int
    quadratic: int
    work: int


class Pieces:
    """The pieces of a half, in the order in which they can run, and the cuts between them."""

    def __init__(self, half: Half) -> None:
        self.half, self._counter = half, Counter(half)
        self._statistics: dict[ir.Value, list[Norm]] = {}
        for statistics in half.statistics:
            names = str(statistics.mean.name), str(statistics.inverse.name)
            norm = Norm(statistics.groups, statistics.epsilon, *names)
            self._statistics.setdefault(statistics.x, []).append(norm)
        self.cuts = [self._cut(value) for value in (half.input, *half.cuts)]
        self.pieces = [self._piece(targets) for targets in half.targets(half.cuts)]

    def _cut(self, value: ir.Value) -> Cut:
        half, layout = self.half, self.half.layouts.get(value)
        rowed = layout is not None and layout.axis is not None
        norms = tuple(self._statistics.get(value, ()))
        if norms and (layout is None or layout.axis != 2):
            raise NotByRowsError(str(value.name), "it is normalised, and its rows do not come after its channels")
        dtype = (value.dtype or ir.DataType.FLOAT).numpy().name
        if dtype not in get_args(Dtype):
            raise NotByRowsError(str(value.name), f"it is of type {dtype}, and the half would have to be cut there")
        return Cut(
            name=str(value.name),
            shape=half.shapes.sizes(value),
            axis=layout.axis if rowed and layout is not None else None,
            scale=layout.scale if rowed and layout is not None else None,
            dtype=cast(Dtype, dtype),
            means=f"{value.name}.row_means" if norms else None,
            variances=f"{value.name}.row_variances" if norms else None,
            norms=norms,
        )

    def _piece(self, targets: Sequence[ir.Value]) -> PieceModel:
        half = self.half
        cuts = {*half.cuts, half.input}
        nodes = half.between(targets, cuts)
        made = {value for node in nodes for value in node.outputs}
        read: dict[ir.Value, set[str]] = {}
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value in cuts and value not in targets and value is not None:
                    kind = half.reads[node].inputs.get(index)
                    read.setdefault(value, set()).add("whole" if kind in (WHOLE, None) else "strips")
        if mixed := [value for value, kinds in read.items() if len(kinds) > 1]:
            raise NotByRowsError(str(mixed[0].name), "the same step reads rows of it and reads it whole")
        strips, whole = ([v for v, kinds in read.items() if kinds == {kind}] for kind in ("strips", "whole"))
        rowed = [value for value in (*strips, *made) if half.has_rows(value)]
        by_rows = half.has_rows(targets[0])
        steps = math.gcd(*(half.scale(value) for value in rowed)) if rowed and by_rows else 1
        needs = half.needs(nodes, targets)
        halo = max((-(-max(needs[v]) * steps // half.scale(v)) for v in strips if v in needs), default=0)
        fed = {str(value.name) for node in nodes for value in node.inputs if value is not None}
        normalised = [v for v, found in self._statistics.items() if any(norm.mean in fed for norm in found)]
        counted, quadratic = self._counter.count(nodes)
        work = live_bytes(half, nodes, [*strips, *targets], whole)
        builder = _Builder(half, targets[0])
        # It takes a cut's statistics for all norms, so that the table need not distinguish them.
        numbers = [v for found in half.statistics if found.x in normalised for v in (found.mean, found.inverse)]
        model = builder.build(nodes, targets, [*strips, *whole, *numbers], self._statistics)
        return PieceModel(
            model=model,
            targets=tuple(str(value.name) for value in targets),
            strips=tuple(str(value.name) for value in strips),
            whole=tuple(str(value.name) for value in whole),
            norms=tuple(str(value.name) for value in normalised),
            columns=builder.columns is not None,
            steps=steps,
            halo=halo,
            operations=counted,
            quadratic=quadratic,
            work=-(-work // steps),
        )

    def untiled(self) -> int:
        """Bytes for each element of the latent's plane that the whole graph takes at its peak."""
        return live_bytes(self.half, self.half.nodes, [self.half.input, *self.half.outputs])


class _Builder:
    """Copies nodes into a separate model, in which no size is computed from anything outside."""

    def __init__(self, half: Half, first: ir.Value) -> None:
        self.half = half
        self.columns: ir.Value | None = None
        self.nodes: list[ir.Node] = []
        self.values: dict[ir.Value, ir.Value] = {}
        self.initializers: dict[str, ir.Value] = {}
        self.prefix = f"{first.name}.piece"

    def build(
        self,
        nodes: Sequence[ir.Node],
        targets: Sequence[ir.Value],
        sources: Sequence[ir.Value],
        statistics: dict[ir.Value, list[Norm]],
    ) -> ir.Model:
        half = self.half
        inputs = [self._declare(value) for value in sources]
        for node in nodes:
            self._copy(node)
        outputs = [self.values[value] for value in targets]
        for target in targets:
            if target in statistics:
                outputs += self._statistics(target)
        if self.columns is not None:
            inputs.append(self.columns)
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": half.opset},
            name=self.prefix,
        )
        model = ir.Model(graph, ir_version=half.model.ir_version)
        chunk_attention(model)
        return model

    def _declare(self, value: ir.Value) -> ir.Value:
        """``value`` in the new model, with its name and type, and the part of its shape that is the same for all
        strips.
        """
        shape = None
        if self.half.shapes.knows(value):
            dims = zip(*self.half.shapes.of(value), strict=True)
            shape = ir.Shape([found[0] if len(set(found)) == 1 else None for found in dims])
        self.values[value] = ir.Value(name=value.name, type=value.type, shape=shape)
        return self.values[value]

    def _copy(self, node: ir.Node) -> None:
        inputs = [self._input(node, index, value) for index, value in enumerate(node.inputs)]
        if node.op_type == "Resize":
            inputs = [*inputs[:2], self._scales(node)]
        # An input is not computed again; one part of a Split may be an input.
        outputs = [
            ir.Value(name=f"{value.name}.unused") if value in self.values else self._declare(value)
            for value in node.outputs
        ]
        self.nodes.append(
            ir.node(node.op_type, inputs, dict(node.attributes), domain=node.domain, outputs=outputs, name=node.name)
        )

    def _input(self, node: ir.Node, index: int, value: ir.Value | None) -> ir.Value | None:
        if value is None or value in self.values:
            return None if value is None else self.values[value]
        tensor = constant_of(value)
        if tensor is not None:
            self.values[value] = self._constant(str(value.name), tensor)
            return self.values[value]
        if node.op_type in ("Reshape", "Expand") and index == 1:
            return self._shape(node)
        if node.op_type == "Resize":
            return None  # ``_scales`` replaces it
        numbers = self.half.shapes.fixed(value, self.half.opset)
        if numbers is None:
            raise NotByRowsError(str(node.name), f"{node.op_type} computes with the image's size")
        return self._constant(f"{value.name}.fixed", ir.tensor(numbers))

    def _constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        name = free_name(name, self.initializers)
        self.initializers[name] = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        return self.initializers[name]

    def _add(self, op_type: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        name = f"{self.prefix}.node_{len(self.nodes)}"
        output = ir.Value(name=name)
        self.nodes.append(ir.node(op_type, inputs, attributes, outputs=[output], name=name))
        return output

    def _numbers(self, *numbers: int) -> ir.Value:
        return self._constant(f"{self.prefix}.numbers", ir.tensor(np.array(numbers, np.int64)))

    def _target(self, sizes: Sequence[Size | int]) -> ir.Value:
        """A shape of numbers and of sizes that follow from the latent's width; -1 stands for the rows."""
        parts: list[ir.Value | int] = []
        for size in sizes:
            if isinstance(size, int) or size.rows or not size.columns:
                parts.append(size if isinstance(size, int) else -1 if size.rows else size.factor)
                continue
            if self.columns is None:
                self.columns = ir.Value(name=COLUMNS, type=INDEX, shape=ir.Shape([1]))
            parts.append(self._add("Mul", [self.columns, self._numbers(size.factor)]))
        if len(parts) == 1 and isinstance(parts[0], ir.Value):
            return parts[0]
        if all(isinstance(part, int) for part in parts):
            return self._numbers(*(part for part in parts if isinstance(part, int)))
        return self._add("Concat", [self._numbers(p) if isinstance(p, int) else p for p in parts], axis=0)

    def _shape(self, node: ir.Node) -> ir.Value:
        shapes = self.half.shapes
        sizes: list[Size | int] = list(shapes.sizes(node.outputs[0]))
        if node.op_type == "Expand":
            source = node.inputs[0]
            assert source is not None
            given = shapes.sizes(source)
            added = len(sizes) - len(given)
            sizes = [1 if axis >= added and given[axis - added] == size else size for axis, size in enumerate(sizes)]
        if sum(not isinstance(size, int) and size.rows for size in sizes) > (node.op_type == "Reshape"):
            raise NotByRowsError(str(node.name), f"{node.op_type} makes rows from the image's size alone")
        return self._target(sizes)

    def _scales(self, node: ir.Node) -> ir.Value:
        source = node.inputs[0]
        assert source is not None
        before, after = self.half.shapes.of(source)[0], self.half.shapes.of(node.outputs[0])[0]
        axes = list(node.attributes.get_ints("axes", range(len(before))))
        scales = np.array([after[axis] / before[axis] for axis in axes], np.float32)
        return self._constant(f"{node.name}.scales", ir.tensor(scales))

    def _statistics(self, target: ir.Value) -> list[ir.Value]:
        """Mean and variance of each row of each channel of a tensor (1, C, rows, ...): (1, C, rows)."""
        x, sizes = self.values[target], list(self.half.shapes.sizes(target))
        each = math.prod(size.factor for size in sizes[2:]) // self.half.scale(target)
        width = Size(each, columns=True)
        if len(sizes) != 4 or sizes[2].columns:
            x = self._add("Reshape", [x, self._target([1, sizes[1].factor, -1, width])])
        means = self._row_means(x, width)
        centred = self._add("Sub", [x, self._add("Unsqueeze", [means, self._numbers(-1)])])
        variances = self._row_means(self._add("Mul", [centred, centred]), width)
        for value, kind in ((means, "means"), (variances, "variances")):
            value.name, value.type = f"{target.name}.row_{kind}", ir.TensorType(ir.DataType.FLOAT)
            value.shape = ir.Shape([1, sizes[1].factor, None])
        return [means, variances]

    def _row_means(self, x: ir.Value, width: Size) -> ir.Value:
        """(1, C, rows, width) -> (1, C, rows).

        The order in which ONNX Runtime sums a row depends on whether the row begins at a multiple of 16 bytes, and so
        on the height of the strip. So rows are padded with zeros to such a length.
        """
        last = self._numbers(-1)
        if width.factor % ALIGNED == 0:
            return self._add("ReduceMean", [x, last], keepdims=0)
        count = self._target([width])
        more = self._add("Mod", [self._add("Neg", [count]), self._numbers(ALIGNED)])
        pads = self._add("Concat", [self._numbers(*[0] * 7), more], axis=0)
        total = self._add("ReduceSum", [self._add("Pad", [x, pads]), last], keepdims=0)
        return self._add("Div", [total, self._add("Cast", [count], to=ir.DataType.FLOAT.value)])
