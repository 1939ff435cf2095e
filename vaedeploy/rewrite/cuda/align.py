"""Fills the channels of convolutions up to a multiple of 8 with zeros, which tensor cores read.

    NhwcConv(x; w, b) = NhwcConv([x, 0]; [[w, 0], [0, 0]], [b, 0])[..., : O]

for O output channels: products with zero add nothing. Images of 3 channels and latents of 4 are the ones concerned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from vaedeploy.graph.edit import add_constant
from vaedeploy.rewrite.cuda.operators import DOMAIN
from vaedeploy.rewrite.outcome import Outcome

__all__ = ["align_channels"]

MULTIPLE = 8
"""float16 numbers in the 16 bytes that a tensor core's load takes at a time."""


def align_channels(model: ir.Model) -> Outcome:
    """Fill the channels of each NhwcConv of a float32 ``model``'s main graph, in place."""
    matches = 0
    for node in [n for n in model.graph if n.domain == DOMAIN and n.op_type == "NhwcConv"]:
        weight = node.inputs[1]
        tensor = None if weight is None else ir.convenience.get_const_tensor(weight)
        if tensor is None or node.attributes.get_int("group", 1) != 1:
            continue
        outputs, *_, inputs = tensor.numpy().shape
        more_outputs, more_inputs = -outputs % MULTIPLE, -inputs % MULTIPLE
        if more_outputs or more_inputs:
            _fill(model.graph, node, tensor.numpy(), more_outputs, more_inputs)
            matches += 1
    return Outcome("align_channels", matches)


def _fill(graph: ir.Graph, node: ir.Node, kernel: Any, more_outputs: int, more_inputs: int) -> None:
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    assert x.shape is not None
    assert output.shape is not None
    name = f"{node.name}.aligned"

    def constant(suffix: str, array: Any) -> ir.Value:
        return add_constant(graph, f"{name}.{suffix}", array)

    def new(op_type: str, inputs: Sequence[ir.Value], channels: int) -> ir.Node:
        made = ir.node(op_type, inputs, name=f"{name}.{op_type}")
        made.outputs[0].name, made.outputs[0].type = f"{name}.{op_type}", output.type
        made.outputs[0].shape = ir.Shape([*shape.dims[:3], channels])
        return made

    node.replace_input_with(
        1, constant("weight", np.pad(kernel, ((0, more_outputs), (0, 0), (0, 0), (0, more_inputs))))
    )
    if more_inputs:
        shape = x.shape
        pad = new(
            "Pad", [x, constant("pads", np.array([0, 0, 0, 0, 0, 0, 0, more_inputs]))], kernel.shape[3] + more_inputs
        )
        graph.insert_before(node, pad)
        node.replace_input_with(0, pad.outputs[0])
    if more_outputs:
        shape = output.shape
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = ir.convenience.get_const_tensor(node.inputs[2])
            assert bias is not None
            node.replace_input_with(2, constant("bias", np.pad(bias.numpy(), (0, more_outputs))))
        limits = [
            constant(suffix, np.array([number]))
            for suffix, number in (("start", 0), ("end", kernel.shape[0]), ("axis", 3))
        ]
        cut = new("Slice", [output, *limits], kernel.shape[0])
        graph.insert_after(node, cut)
        result = cut.outputs[0]
        for use in list(output.uses()):
            if use.node is not cut:
                use.node.replace_input_with(use.idx, result)
        for index, value in enumerate(graph.outputs):
            if value is output:
                graph.outputs[index] = result
        result.name, output.name = output.name, f"{name}.filled"
        output.shape = ir.Shape([*shape.dims[:3], kernel.shape[0] + more_outputs])
