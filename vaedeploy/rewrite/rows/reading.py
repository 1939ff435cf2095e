"""Which rows of its inputs each operator reads for a row of its output.

With [a, b) in rows of the latent, rows [a - A, b + B) of the output are computed from rows [a - above(A), b + below(B))
of an input:

    Conv             above(A) = A * stride + pad                   below(B) = B * stride + kernel - stride - pad
    ConvTranspose    above(A) = (A + kernel - 1 - pad) / stride    below(B) = (B + pad) / stride
    elementwise      above(A) = A                                  below(B) = B

with the padding above.

A convolution's padding at the end of a strip is wrong, but the rows that it affects are not among [a - A, b + B) and
are cut off. At the image's own border it is the whole graph's padding, whatever the mode. An operator may also need all
rows of an input (``WHOLE``): products that sum over positions, and the keys and values of attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from vaedeploy.bundle.rows import Size
from vaedeploy.rewrite.rows.layout import NO_ROWS, Layout, NotByRowsError, Shapes, size_of

__all__ = ["SAME", "WHOLE", "Place", "Read", "Reads", "Window"]


@dataclass(frozen=True)
class Window:
    """The rows of an input that are read: those of the output times ``num / den``, and some more above and below."""

    num: int = 1
    den: int = 1
    above: int = 0
    below: int = 0

    def needed(self, above: int, below: int) -> tuple[int, int]:
        """Rows above and below that are read, for that many rows of the output."""
        return (
            max(0, -(-above * self.num // self.den) + self.above),
            max(0, -(-below * self.num // self.den) + self.below),
        )


SAME = Window()

WHOLE: Literal["whole"] = "whole"
"""All rows of an input are read."""

Read = Window | Literal["whole"]


@dataclass(frozen=True)
class Reads:
    """What an operator does with rows.

    outputs: the layout of each output. inputs: index of each input with rows -> what it reads there.
    """

    outputs: tuple[Layout, ...]
    inputs: Mapping[int, Read]


class Place:
    """A node, with the layouts and shapes of what it reads."""

    def __init__(self, node: ir.Node, layouts: Mapping[ir.Value, Layout], shapes: Shapes) -> None:
        self.node, self.shapes = node, shapes
        self.layouts = [NO_ROWS if value is None else layouts.get(value, NO_ROWS) for value in node.inputs]
        self.rowed = [index for index, layout in enumerate(self.layouts) if layout.axis is not None]

    def fail(self, reason: str) -> NotByRowsError:
        return NotByRowsError(str(self.node.name), f"{self.node.op_type} {reason}")

    def input(self, index: int) -> ir.Value:
        value = self.node.inputs[index]
        if value is None:
            raise self.fail(f"lacks its input {index}")
        return value

    def rank(self, index: int = 0) -> int:
        return len(self.shapes.of(self.input(index))[0])

    def axis(self, index: int = 0) -> int:
        axis = self.layouts[index].axis
        assert axis is not None
        return axis

    def size(self, index: int = 0) -> Size | None:
        """The dimension of an input along its rows; None where it is no multiple of the latent's sides."""
        return size_of([shape[self.axis(index)] for shape in self.shapes.of(self.input(index))])

    def flat(self, index: int = 0) -> bool:
        """Whether the rows of an input are runs of positions."""
        size = self.size(index)
        return size is not None and size.columns

    def only_first(self) -> Layout:
        """The layout of the first input, where no other has rows."""
        if self.rowed != [0]:
            raise self.fail("reads weights or sizes that depend on the image")
        return self.layouts[0]

    def no_whole(self) -> None:
        if any(layout.whole for layout in self.layouts):
            raise self.fail("works on a table of all positions by all positions")

    def numbers(self, index: int) -> list[int]:
        return self.shapes.numbers(self.node.inputs[index] if index < len(self.node.inputs) else None, self.node)

    def same(self, layout: Layout | None = None, window: Read = SAME) -> Reads:
        """Every input with rows is read at the same rows; every output has ``layout``."""
        layout = self.layouts[self.rowed[0]] if layout is None else layout
        return Reads((layout,) * len(self.node.outputs), dict.fromkeys(self.rowed, window))
