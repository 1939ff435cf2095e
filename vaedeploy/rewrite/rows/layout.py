"""Where the rows of an image are in each tensor of a graph.

A half of a VAE is traced with symbols for the sizes of the image. Its shapes are evaluated at ``PROBES``, and each
dimension follows from its sizes there: a number, or a multiple of the latent's height h, its width w, or both:

    (1, 128, 8h, 8w)    rows along axis 2, 8 of them for each row of the latent
    (1, 4, hw, 64)      rows along axis 2, one for each row of the latent, each of w numbers: an image as tokens
    (1, 128, 8h + 2, w) rows along axis 2, 8 of them, one more above and one below: an image that was padded
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vaedeploy.bundle.rows import Size
from vaedeploy.graph.graph import Graph, Inputs
from vaedeploy.graph.sizes import evaluate, static_shape, with_sizes

__all__ = ["NO_ROWS", "Layout", "NotByRowsError", "Shapes", "rows_and_more", "size_of"]

PROBES = ((1009, 1013), (1511, 2003), (2503, 1223))
"""Heights and widths of the latent at which shapes are evaluated. They are prime, to tell them apart."""


class NotByRowsError(Exception):
    """A half cannot be computed by rows. node: the name of the node that forbids it. reason: why, in words."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(f"{node}: {reason}")
        self.node, self.reason = node, reason


@dataclass(frozen=True)
class Layout:
    """Where a tensor's rows are.

    axis: the one along which they lie; None for a tensor without rows. scale: how many there are for each row of the
    latent. above, below: how many rows padding has added.
    whole: axes whose sizes follow from the image's height but that are never cut: positions that attention looks at.
    """

    axis: int | None
    scale: int = 0
    above: int = 0
    below: int = 0
    whole: frozenset[int] = frozenset()

    @property
    def padded(self) -> bool:
        return bool(self.above or self.below)

    def moved(self, place_of: Callable[[int], int]) -> Layout:
        """The same rows, where axis a has become ``place_of(a)``; for a tensor with rows."""
        assert self.axis is not None
        return replace(self, axis=place_of(self.axis), whole=frozenset(map(place_of, self.whole)))


NO_ROWS = Layout(None)


class Shapes:
    """Shapes of all tensors of a graph with one image, at each of PROBES."""

    def __init__(self, graph: Graph, factor: int) -> None:
        model, self.factor = graph.model, factor
        inputs = Inputs(graph, factor)
        self._inputs = [inputs.sizes(1, height * factor, width * factor) for height, width in PROBES]
        sized = [with_sizes(model, sizes) for sizes in self._inputs]
        self.sized = sized[:2]
        self._shapes: dict[str, list[tuple[int, ...] | None]] = {}
        values = [[*m.graph.inputs, *(v for node in m.graph for v in node.outputs)] for m in sized]
        for same in zip(*values, strict=True):
            self._shapes[str(same[0].name)] = [static_shape(value) for value in same]
        for name, value in model.graph.initializers.items():
            self._shapes[name] = [static_shape(value)] * len(PROBES)

    def knows(self, value: ir.Value) -> bool:
        """Whether the shape of a tensor is known."""
        return None not in self._shapes.get(str(value.name), [None])

    def fixed(self, value: ir.Value, opset: int) -> NDArray[Any] | None:
        """The elements of a small tensor that is computed from sizes, if they are the same at all sizes."""
        found = [evaluate(value, opset, inputs) for inputs in self._inputs]
        first = found[0]
        if first is None or any(other is None or not np.array_equal(first, other) for other in found):
            return None
        return first

    def of(self, value: ir.Value) -> list[tuple[int, ...]]:
        """The shape of a tensor at each probe. Raises NotByRowsError where it is not known."""
        shapes = self._shapes.get(str(value.name), [None])
        known = [shape for shape in shapes if shape is not None]
        if len(known) != len(PROBES):
            raise NotByRowsError(_producer(value), f"the size of {value.name} does not follow from the image's")
        return known

    def sizes(self, value: ir.Value) -> tuple[Size, ...]:
        """The dimensions of a tensor. Raises NotByRowsError where one is no multiple of the latent's sides."""
        sizes = [size_of(dims) for dims in zip(*self.of(value), strict=True)]
        if None in sizes:
            raise NotByRowsError(_producer(value), f"the sides of {value.name} are not multiples of the latent's")
        return tuple(size for size in sizes if size is not None)

    def tall_axes(self, value: ir.Value) -> list[int]:
        """The axes whose sizes follow from the latent's height."""
        return [axis for axis, dims in enumerate(zip(*self.of(value), strict=True)) if _follows_height(dims)]

    def numbers(self, value: ir.Value | None, node: ir.Node) -> list[int]:
        """The elements of a small tensor of numbers. Raises NotByRowsError where they depend on the image's size."""
        if value is None:
            return []
        opset = node.graph.opset_imports.get("", 0) if node.graph is not None else 0
        array = evaluate(value, opset)
        if array is None:
            raise NotByRowsError(str(node.name), f"{node.op_type} reads numbers that depend on the image's size")
        return [int(number) for number in array.reshape(-1)]


def _follows_height(dims: Sequence[int]) -> bool:
    size = size_of(dims)
    return size.rows if size is not None else rows_and_more(dims) is not None


def rows_and_more(dims: Sequence[int]) -> tuple[int, int] | None:
    """(scale, more) of a dimension that is ``scale * height + more`` at each of PROBES; None where it is none."""
    heights = [height for height, _ in PROBES]
    slope = Fraction(dims[1] - dims[0], heights[1] - heights[0])
    more = dims[0] - slope * heights[0]
    linear = all(dim == slope * height + more for dim, height in zip(dims, heights, strict=True))
    return (int(slope), int(more)) if linear and slope > 0 and slope.denominator == 1 else None


def size_of(dims: Sequence[int]) -> Size | None:
    """The dimension that has these sizes at PROBES; None where it is no multiple of the latent's sides."""
    for rows in (False, True):
        for columns in (False, True):
            units = [(h if rows else 1) * (w if columns else 1) for h, w in PROBES]
            factors = {Fraction(dim, unit) for dim, unit in zip(dims, units, strict=True)}
            if len(factors) == 1 and (factor := factors.pop()).denominator == 1 and factor >= 1:
                return Size(int(factor), rows, columns)
    return None


def _producer(value: ir.Value) -> str:
    node = value.producer()
    return str(value.name if node is None else node.name)
