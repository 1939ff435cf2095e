"""Turns a graph's images from channels-first (B, C, H, W) to channels-last (B, H, W, C).

NVIDIA's tensor cores read channels-last images. With L(x) the image x in that order,

    L(Conv(x; w)) = NhwcConv(L(x); L(w))        L(f(x, y)) = f(L(x), L(y))

for every elementwise f, and the same holds for the other operators here once their axes are renumbered. No number
changes. A Transpose is left only where a node that is not turned reads an image, or where an image is an input or
output of the graph.

Convolutions and GroupNorms are always turned, other operators where their input is turned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from vaedeploy.graph.edit import constant_of
from vaedeploy.rewrite.cuda.layout import FIRST, LAST, Layouts, channels_last
from vaedeploy.rewrite.cuda.operators import DOMAIN
from vaedeploy.rewrite.outcome import Outcome, Refusal

__all__ = ["turn_channels_last"]

ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Sigmoid", "Tanh", "Round", "Clip", "Cast", "Identity"})


def turn_channels_last(model: ir.Model, keep: set[str]) -> Outcome:
    """Turn the images of a ``model``'s main graph whose shapes are known, in place. keep: see ``fuse_group_norm``."""
    layouts, refusals = Layouts(model.graph, keep), []
    for node in list(model.graph):
        handler = HANDLERS.get((node.domain, node.op_type))
        result = handler(layouts, node) if handler else None
        if isinstance(result, str):
            refusals.append(Refusal(node.name or "", result))
        elif result is not None:
            layouts.turn(node, result)
    matches = layouts.finish()
    if matches:
        model.opset_imports[DOMAIN] = 1
    return Outcome("turn_channels_last", matches, tuple(refusals))


Result = ir.Value | str | None
"""A node's channels-last output, why it is left channels-first, or None where there is nothing to turn."""


def _convolution(layouts: Layouts, node: ir.Node) -> Result:
    x, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
    kernel, auto_pad = constant_of(weight), node.attributes.get_string("auto_pad", "NOTSET")
    if x is None or x.shape is None or len(x.shape) != 4 or output.shape is None:
        return "its input is not known to be an image (B, C, H, W)"
    if weight is None or kernel is None:
        return "its weights are not constant"
    if auto_pad != "NOTSET":
        return f"its padding is {auto_pad}, not given in numbers"
    array = np.ascontiguousarray(kernel.numpy().transpose(LAST[4]))
    attributes = {name: attribute for name, attribute in node.attributes.items() if name != "auto_pad"}
    attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", array.shape[1:3])
    inputs = [layouts.channels_last(x, node), layouts.constant(f"{weight.name}.last", array), *node.inputs[2:]]
    return layouts.add(node, "NhwcConv", inputs, channels_last(output.shape), attributes, DOMAIN)


def _group_norm(layouts: Layouts, node: ir.Node) -> Result:
    x = node.inputs[0]
    if node.attributes.get_int("channels_last", 1) or x is None or x.shape is None:
        return None  # it came with the graph
    source, shape = layouts.channels_last(x, node), channels_last(x.shape)
    attributes = dict(node.attributes) | {"channels_last": ir.AttrInt64("channels_last", 1)}
    if len(shape) == 4:
        return layouts.add(node, "GroupNorm", [source, *node.inputs[1:]], shape, attributes, DOMAIN)
    batch, length, channels = shape
    row, axis = [batch, length, 1, channels], layouts.numbers(node, "axis", 2)
    image = layouts.add(node, "Unsqueeze", [source, axis], row)
    normal = layouts.add(node, "GroupNorm", [image, *node.inputs[1:]], row, attributes, DOMAIN)
    return layouts.add(node, "Squeeze", [normal, axis], shape)


def _elementwise(layouts: Layouts, node: ir.Node) -> Result:
    """Turned where one operand is: the other operands are turned too, constants once and for all."""
    output = node.outputs[0]
    if layouts.last.keys().isdisjoint(value for value in node.inputs if value is not None):
        return None
    rank = None if output.shape is None else len(output.shape)
    inputs: list[ir.Value | None] = []
    for value in node.inputs:
        constant = constant_of(value)
        if value is None or (constant is not None and not constant.shape):
            inputs.append(value)
        elif constant is not None and rank in LAST:
            array = constant.numpy()
            wide = array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(LAST[rank])
            inputs.append(layouts.constant(f"{value.name}.last", np.ascontiguousarray(wide)))
        elif value.shape is not None and rank in LAST and len(value.shape) == rank:
            inputs.append(layouts.channels_last(value, node))
        else:
            return "an operand has not as many dimensions as the result"
    return layouts.add(node, node.op_type, inputs, channels_last(output.shape), node.attributes)


def _resize(layouts: Layouts, node: ir.Node) -> Result:
    """Only nearest: the CUDA provider's other modes take the last two axes as height and width."""
    x, output = node.inputs[0], node.outputs[0]
    if x not in layouts.last:
        return None
    if node.attributes.get_string("mode", "nearest") != "nearest" or "axes" in node.attributes:
        return "it is not nearest, or gives some axes alone"
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return "it cuts out a part of its input"
    if output.shape is None or len(output.shape) != 4:
        return "its output is not known to be an image (B, C, H, W)"
    inputs = [layouts.last[x], None]  # only a Resize that cuts out a part reads the second input
    for value in node.inputs[2:]:
        given = value is not None and (value.shape is None or list(value.shape) != [0])
        inputs.append(_picked(layouts, node, value, LAST[4]) if value is not None and given else None)
    return layouts.add(node, "Resize", inputs, channels_last(output.shape), node.attributes)


def _reshape(layouts: Layouts, node: ir.Node) -> Result:
    """Turned where it makes a sequence of an image or an image of a sequence, and batch and channels stay."""
    x, sizes, output = node.inputs[0], node.inputs[1], node.outputs[0]
    if x not in layouts.last or x is None or sizes is None:
        return None
    if x.shape is None or output.shape is None or {len(x.shape), len(output.shape)} != {3, 4}:
        return "it does not make a sequence of an image, or an image of a sequence"
    batch, channels = x.shape[:2]
    known = isinstance(batch, int) or batch.value is not None
    if not known or not isinstance(channels, int) or [*output.shape[:2]] != [batch, channels]:
        return "batch and channels are not known to stay"
    if len(x.shape) == 4:
        sizes = layouts.numbers(node, "sizes", 0, -1, channels)
        return layouts.add(node, "Reshape", [layouts.last[x], sizes], channels_last(output.shape))
    # A size of 0 stands for the input's size at the same place, which is no longer that of the channels.
    image = _picked(layouts, node, sizes, (0, 2, 3)), layouts.numbers(node, "channels", channels)
    joined = layouts.add(node, "Concat", image, [4], {"axis": 0})
    joined.type = sizes.type
    return layouts.add(node, "Reshape", [layouts.last[x], joined], channels_last(output.shape), node.attributes)


def _transpose(layouts: Layouts, node: ir.Node) -> Result:
    """A move of the channels to the end gives what is there already, and a move back gives what was there before."""
    x, output = node.inputs[0], node.outputs[0]
    perm = tuple(node.attributes.get_ints("perm", ()))
    if x in layouts.last and perm == LAST.get(len(perm)):
        if output.is_graph_output():  # its name must stay
            node.replace_input_with(0, layouts.last[x])
            node.op_type = "Identity"
            node.attributes.clear()
        else:
            output.replace_all_uses_with(layouts.last[x])
            layouts.graph.remove(node, safe=True)
    elif x is not None and x.shape is not None and perm == FIRST.get(len(perm)):
        layouts.last[output] = x
    return None


def _shape(layouts: Layouts, node: ir.Node) -> Result:
    """The sizes of an image that is turned, in the order that readers expect."""
    x, output = node.inputs[0], node.outputs[0]
    if x not in layouts.last or x is None or x.shape is None or output.is_graph_output():
        return None
    rank = len(x.shape)
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    sizes = layouts.add(node, "Shape", [layouts.last[x]], [rank])
    output.replace_all_uses_with(_picked(layouts, node, sizes, FIRST[rank][start:end]))
    layouts.graph.remove(node, safe=True)
    return None


def _concat(layouts: Layouts, node: ir.Node) -> Result:
    output = node.outputs[0]
    if layouts.last.keys().isdisjoint(value for value in node.inputs if value is not None):
        return None
    if output.shape is None or len(output.shape) not in LAST:
        return "its output is not known to be an image or a sequence"
    rank = len(output.shape)
    axis = LAST[rank].index(node.attributes.get_int("axis", 0) % rank)
    inputs = [layouts.channels_last(value, node) for value in node.inputs if value is not None]
    return layouts.add(node, "Concat", inputs, channels_last(output.shape), {"axis": axis})


def _picked(layouts: Layouts, before: ir.Node, numbers: ir.Value, places: tuple[int, ...]) -> ir.Value:
    """Those of ``numbers``, one for each axis, that are at ``places``."""
    tensor = constant_of(numbers)
    if tensor is not None:
        return layouts.constant(f"{before.outputs[0].name}.picked", tensor.numpy()[list(places)])
    indices = layouts.numbers(before, "places", *places)
    picked = layouts.add(before, "Gather", [numbers, indices], [len(places)])
    picked.type = numbers.type
    return picked


HANDLERS: Mapping[tuple[str, str], Callable[[Layouts, ir.Node], Result]] = {
    ("", "Conv"): _convolution,
    (DOMAIN, "GroupNorm"): _group_norm,
    ("", "Resize"): _resize,
    ("", "Reshape"): _reshape,
    ("", "Transpose"): _transpose,
    ("", "Shape"): _shape,
    ("", "Concat"): _concat,
    **dict.fromkeys([("", op_type) for op_type in ELEMENTWISE], _elementwise),
}
