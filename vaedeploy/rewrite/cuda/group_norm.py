"""Writes group normalisation, and the SiLU after it, as one GroupNorm of ONNX Runtime's CUDA provider.

torch's exporter writes GroupNorm with G groups, and SiLU, as

    n = InstanceNormalization(Reshape(x, [B, G, -1])) reshaped back, * gamma + beta        y = n * Sigmoid(n).

The kernel computes the same y in two passes over the image. It sums x and x * x of a group in float32, whatever the
type of x, and takes the variance as mean(x * x) - mean(x)^2. Where a group's mean is much larger than its deviation,
digits cancel that the two-pass form keeps; where its deviation is zero, the difference may be negative and beyond
epsilon, and the result is NaN. The runtime runs such an image again in float32.

The nodes made here are channels-first (``channels_last`` 0), which no kernel takes: ``channels_last.py`` turns them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from vaedeploy.graph.edit import add_constant
from vaedeploy.rewrite.cuda.operators import DOMAIN
from vaedeploy.rewrite.outcome import Outcome, Refusal

__all__ = ["fuse_group_norm"]


def fuse_group_norm(model: ir.Model, keep: set[str]) -> Outcome:
    """Fuse each group normalisation of a float32 ``model``'s main graph, in place.

    keep: names of nodes that have to stay in float32. A fused node is added where one of those that it replaces is in
    it.
    """
    matches, refusals = 0, []
    for node in [n for n in model.graph if n.op_type == "InstanceNormalization" and n.domain == ""]:
        found = _find(node)
        if isinstance(found, str):
            refusals.append(Refusal(node.name or "", found))
            continue
        _replace(model.graph, *found, keep)
        matches += 1
    if matches:
        model.opset_imports[DOMAIN] = 1
    return Outcome("fuse_group_norm", matches, tuple(refusals))


def _find(normal: ir.Node) -> tuple[list[ir.Node], dict[str, Any]] | str:
    """The nodes of the normalisation around ``normal`` and what they say, or why it is left alone."""
    before = normal.inputs[0].producer() if normal.inputs[0] is not None else None
    back = _reader(normal, "Reshape")
    scale = _reader(back, "Mul")
    shift = _reader(scale, "Add")
    if before is None or before.op_type != "Reshape" or back is None or scale is None or shift is None:
        return "it is not between two Reshapes, a scale and a bias"
    x, groups = before.inputs[0], _array(before.inputs[1])
    if x is None or groups is None or groups.size != 3 or groups[0] != 0 or groups[2] != -1:
        return "its input is not reshaped to (batch, groups, rest)"
    if x.dtype != ir.DataType.FLOAT or x.shape is None or len(x.shape) not in (3, 4):
        return "its input is not a float32 image (B, C, H, W) or sequence (B, C, L)"
    channels = x.shape[1]
    if not isinstance(channels, int) or channels % groups[1] or channels // int(groups[1]) % 2:
        return "its kernel takes an even number of channels in each group"
    ones, zeros = _array(normal.inputs[1]), _array(normal.inputs[2])
    if ones is None or zeros is None or np.any(ones != 1) or np.any(zeros != 0):
        return "InstanceNormalization has a scale or a bias of its own"
    gamma, beta = _other(scale, back), _other(shift, scale)
    constants = [_array(value) for value in (gamma, beta)]
    if any(c is None or c.size != channels or c.shape[-len(x.shape) + 1] != channels for c in constants):
        return "scale and bias are not one constant per channel"
    nodes = [before, normal, back, scale, shift]
    silu = _silu(shift)
    return [*nodes, *silu], {
        "x": x,
        "gamma": gamma,
        "beta": beta,
        "groups": int(groups[1]),
        "epsilon": normal.attributes.get_float("epsilon", 1e-5),
        "activation": int(bool(silu)),
    }


def _reader(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """The node of that type that alone reads the output of ``node``."""
    if node is None or len(uses := node.outputs[0].uses()) != 1 or node.outputs[0].is_graph_output():
        return None
    (reader,) = (use.node for use in uses)
    return reader if reader.op_type == op_type and reader.domain == "" else None


def _silu(shift: ir.Node) -> list[ir.Node]:
    """The Sigmoid and the Mul that make SiLU of the output of ``shift``, where nothing else reads it."""
    n = shift.outputs[0]
    readers = {use.node.op_type: use.node for use in n.uses()}
    if len(n.uses()) != 2 or n.is_graph_output() or set(readers) != {"Sigmoid", "Mul"}:
        return []
    product = _reader(readers["Sigmoid"], "Mul")
    return [readers["Sigmoid"], product] if product is readers["Mul"] else []


def _other(node: ir.Node, source: ir.Node) -> ir.Value | None:
    a, b = node.inputs
    return b if a is source.outputs[0] else a


def _array(value: ir.Value | None) -> Any:
    tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _replace(graph: ir.Graph, nodes: list[ir.Node], found: dict[str, Any], keep: set[str]) -> None:
    result, name = nodes[-1].outputs[0], str(nodes[1].name)
    weights = [add_constant(graph, f"{name}.{kind}", _array(found[kind]).reshape(-1)) for kind in ("gamma", "beta")]
    attributes = {k: found[k] for k in ("groups", "epsilon", "activation")} | {"channels_last": 0}
    output = ir.Value(name=f"{name}.fused", type=result.type, shape=found["x"].shape)
    fused = ir.node(
        "GroupNorm", [found["x"], *weights], attributes, domain=DOMAIN, outputs=[output], name=f"{name}.fused"
    )
    if not keep.isdisjoint(str(node.name) for node in nodes):
        keep.add(str(fused.name))
    ir.convenience.replace_nodes_and_values(graph, nodes[-1], nodes, [fused], [result], [output])
