"""Pads the channels of convolutions with zeros to a multiple of 8, as tensor cores read them.

    NhwcConv(x; w, b) = NhwcConv([x, 0]; [[w, 0], [0, 0]], [b, 0])[..., : O]

for O output channels: products with zero add nothing. This concerns images of 3 channels and latents of 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from vaedeploy.graph.edit import add_constant, constant_of
from vaedeploy.rewrite.cuda.operators import DOMAIN
from vaedeploy.rewrite.outcome import Outcome, Refusal

__all__ = ["align_channels"]

MULTIPLE = 8
"""How many float16 numbers are in the 16 bytes that a tensor core loads at a time."""


def align_channels(model: ir.Model) -> Outcome:
    """Pad the channels of each NhwcConv of a float32 ``model``'s main graph, in place."""
    matches, refusals = 0, []
    for node in [n for n in model.graph if n.domain == DOMAIN and n.op_type == "NhwcConv"]:
        kernel = constant_of(node.inputs[1])
        if kernel is not None and not any(size % MULTIPLE for size in kernel.shape.numpy()[::3]):
            continue
        reason = _why_not(node)
        if reason is not None:
            refusals.append(Refusal(node.name or "", reason))
            continue
        _fill(model.graph, node)
        matches += 1
    return Outcome("align_channels", matches, tuple(refusals))


def _why_not(node: ir.Node) -> str | None:
    if any(value is not None and constant_of(value) is None for value in node.inputs[1:]):
        return "its weights or its bias are not constant"
    if node.attributes.get_int("group", 1) != 1:
        return "its channels are in groups"
    if any(value is None or value.shape is None for value in (node.inputs[0], node.outputs[0])):
        return "its shape is not known"
    return None


def _fill(graph: ir.Graph, node: ir.Node) -> None:
    kernel, bias = _array(node.inputs[1]), _array(node.inputs[2] if len(node.inputs) > 2 else None)
    outputs, *_, inputs = kernel.shape
    more_outputs, more_inputs = -outputs % MULTIPLE, -inputs % MULTIPLE
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    name = f"{output.name}.aligned"

    def constant(suffix: str, array: Any) -> ir.Value:
        return add_constant(graph, f"{name}.{suffix}", array)

    def new(op_type: str, like: ir.Value, channels: int, *others: ir.Value) -> ir.Node:
        """A node on ``like`` whose output has as many channels."""
        value = ir.Value(name=f"{name}.{op_type}", type=output.type, shape=_with_channels(like, channels))
        return ir.node(op_type, [like, *others], outputs=[value], name=f"{name}.{op_type}")

    node.replace_input_with(
        1, constant("weight", np.pad(kernel, ((0, more_outputs), (0, 0), (0, 0), (0, more_inputs))))
    )
    if more_inputs:
        pads = np.array([0, 0, 0, 0, 0, 0, 0, more_inputs], np.int64)
        pad = new("Pad", x, inputs + more_inputs, constant("pads", pads))
        graph.insert_before(node, pad)
        node.replace_input_with(0, pad.outputs[0])
    if more_outputs:
        if bias is not None:
            node.replace_input_with(2, constant("bias", np.pad(bias, (0, more_outputs))))
        limits = {"start": 0, "end": outputs, "axis": 3}
        ends = [constant(suffix, np.array([number], np.int64)) for suffix, number in limits.items()]
        filled = ir.Value(name=f"{name}.filled", type=output.type, shape=_with_channels(output, outputs + more_outputs))
        wide = ir.node(
            "NhwcConv",
            node.inputs,
            node.attributes,
            domain=DOMAIN,
            outputs=[filled],
            name=node.name,
            metadata_props=node.metadata_props,
        )
        cut = new("Slice", filled, outputs, *ends)
        ir.convenience.replace_nodes_and_values(graph, node, [node], [wide, cut], [output], cut.outputs)


def _array(value: ir.Value | None) -> Any:
    tensor = constant_of(value)
    return None if tensor is None else tensor.numpy()


def _with_channels(image: ir.Value, channels: int) -> ir.Shape:
    assert image.shape is not None
    return ir.Shape([*image.shape[:3], channels])
