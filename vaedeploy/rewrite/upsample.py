"""Folds nearest x2 upsampling and a 3x3 convolution that follows it into convolutions of the small image.

Along one axis, with u the image after nearest x2 (u[2i] = u[2i + 1] = x[i]) and w the kernel, y[j] = w0 u[j - 1] +
w1 u[j] + w2 u[j + 1], with zeros beyond the border, is

    y[2i]     = w0 x[i - 1] + (w1 + w2) x[i]
    y[2i + 1] = (w0 + w1) x[i] + w2 x[i + 1],

and in two dimensions it is the product of both. A Pad between them may repeat the border instead, by one row and one
column. With n rows in x, the rows beyond the border of u are then, whether the Pad reflects or repeats the last row,

    u[-1] = u[1] = u[0] = x[0]    and    u[2n] = u[2n - 2] = u[2n - 1] = x[n - 1],

which is x[-1] = x[0] and x[n] = x[n - 1] in the equations: a Pad of mode edge, of x.

Two forms compute it, each with 4/9 of the multiplications:

    "convolutions"  a 2x2 convolution for each phase (a, b) of (row, column), padded by 1 - a above, a below, 1 - b to
                    the left, b to the right; then y[2i + a, 2j + b] = phase_ab[i, j], by Concats of rows and
                    then of columns
    "transposed"    a transposed convolution, kernel (w2, w1 + w2, w0 + w1, w0), stride 2, padding 1

A repeated border is padded beforehand instead: by as much for each phase, whose convolution then has no padding, and by
1 on each side for the transposed convolution, whose own padding, which crops its result, is then 3.

Taps are summed in float64 and rounded once. The full-size decoder of Stable Diffusion's VAE has three such layers: in
ONNX Runtime at 256x256 its image differs from the unfolded one's by 7.4e-7 ("convolutions") and 7.8e-7 ("transposed"),
relative L2, and 15.6 % of its convolutions' operations are gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vaedeploy.graph.edit import add_constant, constant_of, free_name
from vaedeploy.rewrite.doubling import why_not_double
from vaedeploy.rewrite.outcome import Outcome, Refusal
from vaedeploy.rewrite.padding import counts_of_pad

__all__ = ["PHASES", "UpsampleForm", "fold_upsampling", "fold_weights", "why_no_border", "why_not_foldable"]

UpsampleForm = Literal["convolutions", "transposed"]

INDEX = ir.TensorType(ir.DataType.INT64)

PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))

TAPS = (np.array([[1, 0, 0], [0, 1, 1]], np.float64), np.array([[1, 1, 0], [0, 0, 1]], np.float64))
"""TAPS[a] @ w is the kernel of phase a along one axis."""

TRANSPOSED_TAPS = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float64)
"""TRANSPOSED_TAPS @ w is the kernel of the transposed convolution along one axis."""


def fold_upsampling(model: ir.Model, form: UpsampleForm) -> Outcome:
    """Fold each nearest x2 Resize of the main graph into the 3x3 convolutions that read it, in place.

    Casts, Identities and one Pad that repeats the border may lie between them. A Resize that another node reads too
    stays for that node, and the convolution is still folded, since its multiplications are what costs. For a Pad of
    zeros between them, apply ``fold_padding`` first. Initializers that nothing reads any more are removed.
    """
    if form not in get_args(UpsampleForm):
        raise ValueError(f"form is {form!r}; it must be one of {', '.join(get_args(UpsampleForm))}")
    matches, refusals, folded = 0, [], {}
    opset = model.graph.opset_imports.get("", 0)
    for resize in [node for node in model.graph if node.op_type == "Resize" and node.domain == ""]:
        convolutions = [path for path in _paths(resize.outputs[0]) if path[-1].op_identifier() == ("", "Conv", "")]
        reason = why_not_double(resize, opset)
        if reason is None and not convolutions:
            reason = "no convolution reads it"
        if reason is not None:
            refusals.append(Refusal(resize.name or "", reason))
            continue
        for *between, conv in convolutions:
            pad = next((node for node in between if node.op_type == "Pad"), None)
            if pad is not None and (reason := why_no_border(pad, opset)):
                refusals.append(Refusal(pad.name or "", reason))
                continue
            reason = why_not_foldable(conv, bordered=pad is not None)
            if reason is not None:
                refusals.append(Refusal(conv.name or "", reason))
                continue
            weight = conv.inputs[1]
            assert weight is not None
            key = weight, conv.attributes.get_int("group", 1)
            if key not in folded:
                folded[key] = fold_weights(model.graph, *key, form)
            if not folded[key]:
                refusals.append(Refusal(conv.name or "", "sums of its weights overflow their type"))
                continue
            _replace(resize, between, conv, folded[key])
            matches += 1
    if matches:
        RemoveUnusedNodesPass()(model)
    return Outcome("fold_upsampling", matches, tuple(refusals))


def _paths(value: ir.Value, passed: tuple[ir.Node, ...] = ()) -> Iterator[tuple[ir.Node, ...]]:
    """For each node that reads ``value`` as its first input: the nodes on the way, and that node.

    Casts, Identities and one Pad may lie on the way.
    """
    padded = any(node.op_type == "Pad" for node in passed)
    for node, index in value.uses():
        if index == 0 and node.domain == "" and node.op_type in ("Cast", "Identity", *(() if padded else ("Pad",))):
            yield from _paths(node.outputs[0], (*passed, node))
        elif index == 0:
            yield (*passed, node)


def why_no_border(pad: ir.Node, opset: int) -> str | None:
    """Why ``pad``, of an image, may not repeat its border by one row and one column on each side; None where it does.

    After nearest x2, reflecting the border is the same as repeating it.
    """
    mode = pad.attributes.get_string("mode", "constant")
    if mode not in ("edge", "reflect"):
        return f"its mode is {mode}, not edge or reflect"
    counts = counts_of_pad(pad, 4, opset)
    if isinstance(counts, str):
        return counts
    return None if counts == [1, 1, 1, 1] else f"it pads by {counts}, not by 1 on each side"


def why_not_foldable(conv: ir.Node, *, bordered: bool = False) -> str | None:
    """Why ``conv`` cannot be folded; None where it can. bordered: whether a Pad in front of it repeats the border."""
    weight, attributes = conv.inputs[1], conv.attributes
    tensor = constant_of(weight)
    if tensor is None:
        return "its weights are not constant"
    shape = tuple(tensor.shape)
    if shape[2:] != (3, 3):
        return f"its kernel is {'x'.join(map(str, shape[2:]))}, not 3x3"
    for name in ("strides", "dilations"):
        numbers = list(attributes.get_ints(name, (1, 1)))
        if numbers != [1, 1]:
            return f"its {name} are {numbers}, not 1"
    auto, pads = attributes.get_string("auto_pad", "NOTSET"), list(attributes.get_ints("pads", (0, 0, 0, 0)))
    own = {"NOTSET": pads, "VALID": [0, 0, 0, 0]}.get(auto, [1, 1, 1, 1])
    if own != ([0, 0, 0, 0] if bordered else [1, 1, 1, 1]):
        wanted = "0 after a Pad" if bordered else "1 on each side"
        return f"its padding is {pads if auto == 'NOTSET' else auto}, not {wanted}"
    if shape[1] == 1 and attributes.get_int("group", 1) > 1:
        return "it is depthwise: reading and writing images takes its time, not multiplications"
    return None


def fold_weights(graph: ir.Graph, weight: ir.Value, groups: int, form: UpsampleForm) -> list[ir.Value]:
    """New initializers in the weight's dtype: (O, I/g, 2, 2) for each phase, or one (I, O/g, 4, 4).

    The list is empty where a sum of taps overflows.
    """
    tensor = constant_of(weight)
    assert tensor is not None
    kernel = tensor.numpy().astype(np.float64)
    if form == "convolutions":
        kernels = {f"phase_{a}{b}": TAPS[a] @ kernel @ TAPS[b].T for a, b in PHASES}
    else:
        wide = TRANSPOSED_TAPS @ kernel @ TRANSPOSED_TAPS.T
        wide = wide.reshape(groups, -1, *wide.shape[1:]).swapaxes(1, 2)
        kernels = {"transposed": wide.reshape(-1, *wide.shape[2:])}
    with np.errstate(over="ignore"):
        rounded = {
            suffix: np.ascontiguousarray(array.astype(tensor.dtype.numpy())) for suffix, array in kernels.items()
        }
    if not all(np.isfinite(array.astype(np.float64)).all() for array in rounded.values()):
        return []
    values = []
    for suffix, array in rounded.items():
        # An earlier call may have used the name, for another convolution of these weights.
        name = free_name(f"{weight.name}.{suffix}", graph.initializers)
        values.append(ir.val(name, const_value=ir.tensor(array)))
        graph.register_initializer(values[-1])
    return values


def _replace(resize: ir.Node, between: Sequence[ir.Node], conv: ir.Node, weights: Sequence[ir.Value]) -> None:
    """Replace ``conv`` by the folded form; nodes that are no longer read are left in the graph."""
    nodes: list[ir.Node] = []
    output, x, graph = conv.outputs[0], resize.inputs[0], conv.graph
    assert x is not None
    assert graph is not None

    def add(
        operator: str, inputs: Sequence[ir.Value | None], like: ir.Value, suffix: str, **attributes: Any
    ) -> ir.Value:
        """The output of a new node on the small image. like: a value of the output's type and number of channels."""
        node = ir.node(operator, inputs, attributes, name=f"{conv.name}.{suffix}", metadata_props=conv.metadata_props)
        value = node.outputs[0]
        value.name, value.type = f"{output.name}.{suffix}", like.type
        if x.shape is not None and like.shape is not None:
            value.shape = ir.Shape([x.shape[0], like.shape[1], *x.shape.dims[2:]])
        nodes.append(node)
        return value

    source, bordered = x, any(node.op_type == "Pad" for node in between)
    for index, node in enumerate(node for node in between if node.op_type != "Pad"):
        source = add(node.op_type, [source], node.outputs[0], f"input_{index}", **node.attributes)

    def padded(suffix: str, pads: Sequence[int]) -> tuple[ir.Value, Sequence[int]]:
        """The input of a convolution that is padded by ``pads``, and the padding that it keeps for itself."""
        if not bordered:
            return source, pads
        top, left, bottom, right = pads
        numbers = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
        counts = add_constant(graph, f"{output.name}.{suffix}.pads", numbers)
        value = add("Pad", [source, counts], source, f"{suffix}.padded", mode="edge")
        if value.shape is not None:
            batch, channels, height, width = value.shape
            value.shape = ir.Shape([batch, channels, height + top + bottom, width + left + right])
        return value, (0, 0, 0, 0)

    shared = {"group": conv.attributes.get_int("group", 1), "dilations": (1, 1)}
    bias = conv.inputs[2:]
    if len(weights) == 1:
        # It makes two rows and two columns of each padded one: they are cut off.
        cut = (3, 3, 3, 3) if bordered else (1, 1, 1, 1)
        shared |= {"kernel_shape": (4, 4), "strides": (2, 2), "pads": cut}
        given, _ = padded("transposed", (1, 1, 1, 1))
        add("ConvTranspose", [given, *weights, *bias], output, "transposed", **shared)
    else:
        shared |= {"kernel_shape": (2, 2), "strides": (1, 1)}
        phases = []
        for w, (a, b) in zip(weights, PHASES, strict=True):
            given, pads = padded(f"phase_{a}{b}", (1 - a, 1 - b, a, b))
            phases.append(add("Conv", [given, w, *bias], output, f"phase_{a}{b}", pads=pads, **shared))
        nodes += _interleave(phases, output, f"{conv.name}.interleaved")
    ir.convenience.replace_nodes_and_values(graph, conv, [conv], nodes, [output], [nodes[-1].outputs[0]])


def _interleave(phases: Sequence[ir.Value], output: ir.Value, prefix: str) -> list[ir.Node]:
    """Nodes that interleave (B, O, h, w) for each of PHASES to (B, O, 2h, 2w), the output of the last node.

    Each row of phase (0, b) followed by the same row of phase (1, b), (B, O, h, 2w), has the memory layout of (B, O,
    2h, w).

    One Concat and a DepthToSpace would do too, but ONNX Runtime runs DepthToSpace on one core: those two took 0.38 s of
    a full-size decode at 512x512 (8.4 s, two cores), and these nodes take 0.18 s.
    """
    nodes: list[ir.Node] = []
    shape, wide = phases[0].shape, None if output.shape is None else output.shape[3]

    def add(
        operator: str, inputs: Sequence[ir.Value], type: ir.TypeProtocol | None, *last_sizes: Any, **attributes: Any
    ) -> ir.Value:
        """The output of a new node. last_sizes: its sizes after (B, O, h), where they are known."""
        node = ir.node(operator, inputs, attributes, name=f"{prefix}.{len(nodes)}")
        (value,) = node.outputs
        value.name, value.type = f"{output.name}.interleaved.{len(nodes)}", type
        if last_sizes and shape is not None:
            value.shape = ir.Shape([*shape.dims[:3], *last_sizes])
        nodes.append(node)
        return value

    def numbers(*values: int) -> ir.Value:
        return add("Constant", [], INDEX, value=ir.tensor(values, ir.DataType.INT64))

    column = numbers(0, 0, 0, 0, 1)
    rows = [add("Concat", [phases[b], phases[2 + b]], output.type, wide, axis=3) for b in (0, 1)]
    columns = [add("Reshape", [row, column], output.type, wide, 1) for row in rows]
    pairs = add("Concat", columns, output.type, wide, 2, axis=4)
    # Shape reads a row, not a phase: ONNX Runtime keeps phases in a layout of its own, and would convert one for that.
    sizes = add("Mul", [add("Shape", rows[:1], INDEX), numbers(1, 1, 2, 1)], INDEX)
    add("Reshape", [pairs, sizes], output.type)
    return nodes
