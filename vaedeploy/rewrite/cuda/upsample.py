"""Folds nearest x2 upsampling and the 3x3 convolution after it into channels-last convolutions of the small image.

``rewrite/upsample.py`` has the equations. The four phases y_ab, (B, h, w, O) each, lie in the result as

    y[:, 2i + a, 2j + b] = y_ab[:, i, j]:        (B, h, 2, w, 2, O)   read as   (B, 2h, 2w, O),

so that channels-last, Concats of whole rows of channels join them. A Pad that repeats the border becomes a Pad of x
here too, one for each phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vaedeploy.graph.edit import add_constant
from vaedeploy.rewrite.cuda.operators import DOMAIN
from vaedeploy.rewrite.doubling import why_not_double
from vaedeploy.rewrite.outcome import Outcome, Refusal
from vaedeploy.rewrite.upsample import PHASES, fold_weights, why_no_border, why_not_foldable

__all__ = ["fold_upsampling_last"]


def fold_upsampling_last(model: ir.Model, keep: set[str]) -> Outcome:
    """Fold each nearest x2 Resize of a float32 ``model``'s main graph into its only reader, a convolution, in place,
    and with it a Pad between them that repeats the border. keep: see ``fuse_group_norm``.
    """
    matches, refusals = 0, []
    opset = model.graph.opset_imports.get("", 0)
    for resize in [node for node in model.graph if node.op_type == "Resize" and node.domain == ""]:
        pads, readers = [], [use.node for use in resize.outputs[0].uses()]
        reason = why_not_double(resize, opset)
        if reason is None and [node.op_identifier() for node in readers] == [("", "Pad", "")]:
            pads, readers = readers, [use.node for use in readers[0].outputs[0].uses()]
            reason = why_no_border(pads[0], opset)
        if reason is None and [node.op_identifier() for node in readers] != [("", "Conv", "")]:
            reason = "it is not read by one convolution only"
        if reason is None and (resize.inputs[0].shape is None or readers[0].outputs[0].shape is None):  # type: ignore[union-attr]
            reason = "its shape is not known"
        reason = reason or why_not_foldable(readers[0], bordered=bool(pads))
        # This form of the weights does not depend on the number of groups.
        phases = [] if reason else fold_weights(model.graph, readers[0].inputs[1], 1, "convolutions")  # type: ignore[arg-type]
        if reason is not None or not phases:
            refusals.append(Refusal(resize.name or "", reason or "sums of its weights overflow their type"))
            continue
        convolutions = _replace(model.graph, resize, readers[0], phases, bordered=bool(pads))
        if not keep.isdisjoint(str(node.name) for node in (resize, *pads, readers[0])):
            keep.update(convolutions)
        matches += 1
    if matches:
        model.opset_imports[DOMAIN] = 1
        RemoveUnusedNodesPass()(model)
    return Outcome("fold_upsampling_last", matches, tuple(refusals))


def _replace(
    graph: ir.Graph, resize: ir.Node, conv: ir.Node, weights: Sequence[ir.Value], *, bordered: bool
) -> list[str]:
    """Replace both nodes, and the Pad between them if there is one, for which the border of the image is repeated.

    Returns the names of the new convolutions.
    """
    x, output, name = resize.inputs[0], conv.outputs[0], f"{conv.outputs[0].name}.phases"
    assert x is not None
    assert x.shape is not None
    assert output.shape is not None
    batch, _, height, width = x.shape
    _, _, tall, wide = output.shape
    channels = weights[0].shape[0]  # type: ignore[index]
    nodes: list[ir.Node] = []

    def add(
        op_type: str, inputs: Sequence[ir.Value | None], shape: Sequence[Any], domain: str = "", **attributes: Any
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, domain=domain, name=f"{name}.{len(nodes)}")
        node.outputs[0].name, node.outputs[0].type = f"{name}.{len(nodes)}", output.type
        node.outputs[0].shape = ir.Shape(shape)
        nodes.append(node)
        return node.outputs[0]

    def constant(suffix: str, array: Any) -> ir.Value:
        return add_constant(graph, f"{name}.{suffix}", array)

    last = add("Transpose", [x], [batch, height, width, x.shape[1]], perm=(0, 2, 3, 1))
    phases = []
    shared = {"kernel_shape": (2, 2), "strides": (1, 1), "dilations": (1, 1)}
    for weight, (a, b) in zip(weights, PHASES, strict=True):
        array = np.ascontiguousarray(weight.const_value.numpy().transpose(0, 2, 3, 1))  # type: ignore[union-attr]
        source, pads = last, (1 - a, 1 - b, a, b)
        if bordered:
            counts = constant(f"pads_{a}{b}", np.array([0, *pads[:2], 0, 0, *pads[2:], 0], np.int64))
            source = add("Pad", [last, counts], [batch, height + 1, width + 1, x.shape[1]], mode="edge")
            pads = (0, 0, 0, 0)
        inputs = [source, constant(f"kernel_{a}{b}", array), *conv.inputs[2:]]
        attributes = {**shared, "pads": pads, "group": conv.attributes.get_int("group", 1)}
        phases.append(add("NhwcConv", inputs, [batch, height, width, channels], DOMAIN, **attributes))
    rows = []
    row = constant("row", np.array([0, 0, 1, -1], np.int64))
    for a in (0, 1):
        pair = add("Concat", phases[2 * a : 2 * a + 2], [batch, height, width, 2 * channels], axis=3)
        rows.append(add("Reshape", [pair, row], [batch, height, 1, None]))
    both = add("Concat", rows, [batch, height, 2, None], axis=2)
    small = add("Shape", phases[:1], [4])
    sizes = add("Mul", [small, constant("twice", np.array([1, 2, 2, 1], np.int64))], [4])
    small.type = sizes.type = ir.TensorType(ir.DataType.INT64)
    joined = add("Reshape", [both, sizes], [batch, tall, wide, channels])
    add("Transpose", [joined], output.shape.dims, perm=(0, 3, 1, 2))
    ir.convenience.replace_nodes_and_values(graph, conv, [conv], nodes, [output], [nodes[-1].outputs[0]])
    return [str(node.name) for node in nodes if node.op_type == "NhwcConv"]
