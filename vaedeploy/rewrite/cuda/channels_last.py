"""Turns a graph's images from channels-first (B, C, H, W) to channels-last (B, H, W, C).

NVIDIA's tensor cores read channels-last images. With L(x) the image x in that order,

    L(Conv(x; w)) = NhwcConv(L(x); L(w))        L(f(x, y)) = f(L(x), L(y))

for every f that works on each element alone, and the same holds for the other operators here once their axes are
renamed. A Transpose stands only where a node that is not turned reads an image, or a graph's input or output is one.
Sequences (B, C, L), as the middle of a VAE has them, become (B, L, C).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from vaedeploy.graph.edit import add_constant, free_name
from vaedeploy.rewrite.cuda.operators import DOMAIN
from vaedeploy.rewrite.outcome import Outcome

__all__ = ["turn_channels_last"]

LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1)}
"""Rank -> the permutation that moves the channels from second to last."""

FIRST = {3: (0, 2, 1), 4: (0, 3, 1, 2)}
"""Rank -> the permutation that moves them back."""

ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Sigmoid", "Tanh", "Round", "Clip", "Cast", "Identity"})


def turn_channels_last(model: ir.Model, keep: set[str]) -> Outcome:
    """Turn the images of a ``model``'s main graph whose shapes are known, from its convolutions on, in place. keep: see
    ``fuse_group_norm``.
    """
    turn = _Turn(model.graph, keep)
    for node in list(model.graph):
        turn.visit(node)
    turn.finish()
    if turn.turned:
        model.opset_imports[DOMAIN] = 1
    return Outcome("turn_channels_last", len(turn.turned))


class _Turn:
    """One pass over a graph, in its order.

    last: channels-first value -> the same one channels-last. turned: the nodes whose outputs are all in it.
    """

    def __init__(self, graph: ir.Graph, keep: set[str]) -> None:
        self.graph, self.keep = graph, keep
        self.last: dict[ir.Value, ir.Value] = {}
        self.turned: list[ir.Node] = []
        self.handlers: Mapping[tuple[str, str], Callable[[ir.Node], ir.Value | None]] = {
            ("", "Conv"): self._convolution,
            (DOMAIN, "GroupNorm"): self._group_norm,
            ("", "Resize"): self._resize,
            ("", "Reshape"): self._reshape,
            ("", "Transpose"): self._transpose,
            ("", "Shape"): self._shape,
            ("", "Concat"): self._concat,
        } | {("", op_type): self._elementwise for op_type in ELEMENTWISE}
        self.names = {*graph.initializers, *(o.name for n in graph for o in n.outputs), *(i.name for i in graph.inputs)}

    def visit(self, node: ir.Node) -> None:
        handler = self.handlers.get((node.domain, node.op_type))
        output = handler(node) if handler else None
        if output is not None:
            self.last[node.outputs[0]] = output
            self.turned.append(node)

    def finish(self) -> None:
        """Let what was not turned read the turned values, through Transposes, and remove the nodes that were turned."""
        turned = set(self.turned)
        for node in reversed(self.turned):
            value = node.outputs[0]
            if value.is_graph_output() or any(use.node not in turned for use in value.uses()):
                first = self._transposed(node, self.last[value], FIRST)
                name, value.name = value.name, None
                value.replace_all_uses_with(first, replace_graph_outputs=True)
                first.name, first.shape, first.type = name, value.shape, value.type
            self.graph.remove(node, safe=False)

    def _add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """The output of a new node, in front of ``before``."""
        node = ir.node(op_type, inputs, attributes, domain=domain, name=self._free(f"{before.name}.last"))
        node.metadata_props.update(before.metadata_props)
        if before.name in self.keep:
            self.keep.add(str(node.name))
        self.graph.insert_before(before, node)
        (output,) = node.outputs
        output.name = self._free(f"{before.outputs[0].name}.last")
        output.type = before.outputs[0].type
        return output

    def _free(self, name: str) -> str:
        name = free_name(name, self.names)
        self.names.add(name)
        return name

    def _constant(self, name: str, array: Any) -> ir.Value:
        return add_constant(self.graph, self._free(name), array)

    def _transposed(self, before: ir.Node, value: ir.Value, permutations: dict[int, tuple[int, ...]]) -> ir.Value:
        perm = permutations[len(_known(value.shape))]
        output = self._add(before, "Transpose", [value], {"perm": perm})
        output.type, output.shape = value.type, ir.Shape([_known(value.shape)[axis] for axis in perm])
        return output

    def _last(self, before: ir.Node, value: ir.Value) -> ir.Value:
        if value not in self.last:
            self.last[value] = self._transposed(before, value, LAST)
        return self.last[value]

    def _like(self, output: ir.Value, value: ir.Value) -> ir.Value:
        """``output`` with the shape of ``value``, channels last."""
        shape = _known(value.shape)
        output.shape = ir.Shape([shape[axis] for axis in LAST[len(shape)]])
        return output

    def _convolution(self, node: ir.Node) -> ir.Value | None:
        x, weight = node.inputs[0], node.inputs[1]
        tensor = None if weight is None else ir.convenience.get_const_tensor(weight)
        if x is None or x.shape is None or len(x.shape) != 4 or weight is None or tensor is None:
            return None
        if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or node.outputs[0].shape is None:
            return None
        kernel = self._constant(f"{weight.name}.last", np.ascontiguousarray(tensor.numpy().transpose(LAST[4])))
        attributes = {k: a for k, a in node.attributes.items() if k != "auto_pad"}
        inputs = [self._last(node, x), kernel, *node.inputs[2:]]
        return self._like(self._add(node, "NhwcConv", inputs, attributes, DOMAIN), node.outputs[0])

    def _group_norm(self, node: ir.Node) -> ir.Value | None:
        x = node.inputs[0]
        assert x is not None
        assert x.shape is not None
        source = self._last(node, x)
        attributes = dict(node.attributes) | {"channels_last": ir.AttrInt64("channels_last", 1)}
        if len(x.shape) == 4:
            return self._like(self._add(node, "GroupNorm", [source, *node.inputs[1:]], attributes, DOMAIN), x)
        axis = self._constant(f"{node.name}.axis", np.array([2]))
        batch, length, channels = _known(source.shape)
        row = self._add(node, "Unsqueeze", [source, axis])
        normal = self._add(node, "GroupNorm", [row, *node.inputs[1:]], attributes, DOMAIN)
        for value in (row, normal):
            value.shape = ir.Shape([batch, length, 1, channels])
        return self._like(self._add(node, "Squeeze", [normal, axis]), x)

    def _elementwise(self, node: ir.Node) -> ir.Value | None:
        """Turned where an operand is, and the others have its shape or are one number or one for each channel."""
        output = node.outputs[0]
        if output.shape is None or len(output.shape) not in LAST or not any(v in self.last for v in node.inputs if v):
            return None
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            if value is None or value in self.last:
                inputs.append(None if value is None else self.last[value])
                continue
            if value.shape is None:
                return None
            if all(dim == 1 for dim in value.shape):
                inputs.append(value)
            elif len(value.shape) == len(output.shape) and not value.is_initializer():
                inputs.append(self._last(node, value))
            else:
                array = _channelwise(value, len(output.shape))
                if array is None:
                    return None
                inputs.append(self._constant(f"{value.name}.last", array))
        return self._like(self._add(node, node.op_type, inputs, node.attributes), output)

    def _resize(self, node: ir.Node) -> ir.Value | None:
        x, output = node.inputs[0], node.outputs[0]
        if x not in self.last or output.shape is None or "axes" in node.attributes or any(node.inputs[1:2]):
            return None
        inputs: list[ir.Value | None] = [self.last[x], *node.inputs[1:2]]
        for value in node.inputs[2:]:
            empty = value is None or (value.shape is not None and list(value.shape) == [0])
            inputs.append(None if empty or value is None else self._reordered(node, value))
        return self._like(self._add(node, "Resize", inputs, node.attributes), output)

    def _reordered(self, before: ir.Node, value: ir.Value) -> ir.Value:
        """Four numbers, one for each axis, in the order of a channels-last image."""
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return self._constant(f"{before.name}.last", tensor.numpy()[list(LAST[4])])
        output = self._add(before, "Gather", [value, self._constant(f"{before.name}.order", np.array(LAST[4]))])
        output.type, output.shape = value.type, ir.Shape([4])
        return output

    def _reshape(self, node: ir.Node) -> ir.Value | None:
        """Turned where it makes a sequence of an image, or an image of a sequence, and the channels stay."""
        x, output = node.inputs[0], node.outputs[0]
        if x not in self.last or x is None or x.shape is None or output.shape is None:
            return None
        ranks = len(x.shape), len(output.shape)
        if set(ranks) != {3, 4} or x.shape[1] != output.shape[1] or not isinstance(x.shape[1], int):
            return None
        if ranks == (4, 3):
            sizes = self._constant(f"{node.name}.sizes", np.array([0, -1, x.shape[1]]))
        else:
            assert node.inputs[1] is not None
            sizes = self._reordered(node, node.inputs[1])
        return self._like(self._add(node, "Reshape", [self.last[x], sizes]), output)

    def _transpose(self, node: ir.Node) -> ir.Value | None:
        """One that moves the channels to the end is what ``last`` has already; one that moves them back is kept."""
        x, output = node.inputs[0], node.outputs[0]
        assert x is not None
        perm = tuple(node.attributes.get_ints("perm", ()))
        if x in self.last and perm == LAST.get(len(perm)):
            output.replace_all_uses_with(self.last[x], replace_graph_outputs=False)
        if perm == FIRST.get(len(perm)) and x.shape is not None and x not in self.last:
            self.last[output] = x
        return None

    def _shape(self, node: ir.Node) -> ir.Value | None:
        """The sizes of an image that is turned, in the order that readers expect."""
        x = node.inputs[0]
        if x not in self.last or x is None or x.shape is None:
            return None
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(x.shape))
        order = FIRST[len(x.shape)][start:end]
        sizes = self._add(node, "Shape", [self.last[x]])
        sizes.shape = ir.Shape([len(x.shape)])
        picked = self._add(node, "Gather", [sizes, self._constant(f"{node.name}.order", np.array(order))])
        picked.shape = node.outputs[0].shape
        node.outputs[0].replace_all_uses_with(picked, replace_graph_outputs=True)
        return None

    def _concat(self, node: ir.Node) -> ir.Value | None:
        output = node.outputs[0]
        if output.shape is None or len(output.shape) != 4 or not all(v in self.last for v in node.inputs):
            return None
        axis = LAST[4].index(node.attributes.get_int("axis", 0) % 4)
        return self._like(self._add(node, "Concat", [self.last[v] for v in node.inputs if v], {"axis": axis}), output)


def _known(shape: ir.Shape | None) -> Sequence[Any]:
    assert shape is not None
    return shape.dims


def _channelwise(value: ir.Value, rank: int) -> Any:
    """A constant (C, 1, ...) or (1, C, 1, ...) as (C,), which broadcasts along the last axis; None for others."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        return None
    array = tensor.numpy()
    wide = array.reshape((1,) * (rank - array.ndim) + array.shape)
    return wide.reshape(-1) if wide.size == wide.shape[1] else None
