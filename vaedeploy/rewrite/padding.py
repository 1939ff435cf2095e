"""Folds explicit padding with zeros before a convolution into the padding of the convolution itself.

With P(x; t, l, b, r) the image x with t, l, b and r zeros above it, to its left, below it and to its right,

    Conv(P(x; t, l, b, r); pads = (t', l', b', r')) = Conv(x; pads = (t + t', l + l', b + b', r + r')),

which are the same products in the same sums. Encoders of Stable Diffusion's kind pad by (0, 0, 1, 1) before each
convolution of stride 2. torch's TorchScript exporter writes that as a Pad, which copies the whole image; torch's dynamo
exporter folds most of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vaedeploy.graph.sizes import evaluate
from vaedeploy.rewrite.outcome import Outcome, Refusal

__all__ = ["counts_of_pad", "fold_padding"]


def fold_padding(model: ir.Model) -> Outcome:
    """Fold each Pad of the main graph into the convolutions that read it, in place.

    A Pad that another node reads too stays for that node. Nodes that are no longer read are removed.
    """
    matches, refusals = 0, []
    opset = model.graph.opset_imports.get("", 0)
    for pad in [node for node in model.graph if node.op_type == "Pad" and node.domain == ""]:
        convolutions = list(_convolutions(pad))
        if not convolutions:
            refusals.append(Refusal(pad.name or "", "no convolution reads it"))
            continue
        rank = _rank(convolutions[0])
        zeros = "the rank of the convolution's weights is not known" if rank is None else _zeros(pad, rank, opset)
        if isinstance(zeros, str):
            refusals.append(Refusal(pad.name or "", zeros))
            continue
        for conv in convolutions:
            auto = conv.attributes.get_string("auto_pad", "NOTSET")
            if auto not in ("NOTSET", "VALID"):
                refusals.append(Refusal(conv.name or "", f"its own padding follows from the image's size ({auto})"))
                continue
            pads = [0] * len(zeros) if auto == "VALID" else conv.attributes.get_ints("pads", [0] * len(zeros))
            conv.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(pads, zeros, strict=True)])
            conv.attributes.pop("auto_pad", None)
            conv.replace_input_with(0, pad.inputs[0])
            matches += 1
    if matches:
        RemoveUnusedNodesPass()(model)
    return Outcome("fold_padding", matches, tuple(refusals))


def _convolutions(pad: ir.Node) -> Iterator[ir.Node]:
    for node, index in pad.outputs[0].uses():
        if node.op_type == "Conv" and node.domain == "" and index == 0:
            yield node


def _rank(conv: ir.Node) -> int | None:
    weight = conv.inputs[1]
    return None if weight is None or weight.shape is None else len(weight.shape)


def _zeros(pad: ir.Node, rank: int, opset: int) -> list[int] | str:
    """The zeros that ``pad`` adds before and after each spatial axis, in Conv's order, or why it cannot be folded."""
    mode = pad.attributes.get_string("mode", "constant")
    if mode != "constant":
        return f"its mode is {mode}, not constant"
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    if value is not None:
        number = evaluate(value, opset)
        if number is None:
            return "the value that it pads with is not constant"
        if np.any(number != 0):
            return f"it pads with {number.item():g}, not zero"
    return counts_of_pad(pad, rank, opset)


def counts_of_pad(pad: ir.Node, rank: int, opset: int) -> list[int] | str:
    """How much ``pad`` adds before and after each spatial axis, in Conv's order, or why no convolution could pad so."""
    inputs = dict(zip(("x", "pads", "value", "axes"), pad.inputs, strict=False))
    pads, axes = inputs.get("pads"), inputs.get("axes")
    counts = None if pads is None else evaluate(pads, opset)
    padded_axes = np.arange(rank) if axes is None else evaluate(axes, opset)
    if counts is None or padded_axes is None:
        return "how much it pads is not constant"
    before, after = np.zeros(rank, np.int64), np.zeros(rank, np.int64)
    before[padded_axes], after[padded_axes] = np.split(counts, 2)
    if before[:2].any() or after[:2].any():
        return "it pads the batch or the channels"
    if (before < 0).any() or (after < 0).any():
        return "it crops: some of its padding is negative"
    return [*before[2:].tolist(), *after[2:].tolist()]
