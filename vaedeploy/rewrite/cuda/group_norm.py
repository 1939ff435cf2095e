"""Writes group normalisation, and the SiLU after it, as one GroupNorm of ONNX Runtime's CUDA provider.

torch's exporter writes GroupNorm with G groups, and SiLU, as

    n = InstanceNormalization(Reshape(x, [B, G, -1])) reshaped back, * gamma + beta        y = n * Sigmoid(n)

up to opset 20, and n = GroupNormalization(x, gamma, beta) from opset 21 on.

The kernel computes the same y in two passes over the image. It sums x and x * x of a group in float32, whatever the
type of x, and takes the variance as mean(x * x) - mean(x)^2. Where a group's mean is much larger than its deviation,
digits cancel that the two-pass form keeps; where the deviation is zero, the difference may be negative and larger than
epsilon, and the result is NaN. The runtime then reruns the image in float32.

The nodes made here are channels-first (``channels_last`` 0), which no kernel takes: ``channels_last.py`` turns them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vaedeploy.graph.edit import add_constant, constant_of
from vaedeploy.rewrite.cuda.operators import DOMAIN
from vaedeploy.rewrite.normalization import group_count, is_filled, is_shape_of
from vaedeploy.rewrite.outcome import Outcome, Refusal

__all__ = ["fuse_group_norm"]


@dataclass(frozen=True)
class _Found:
    """A group normalisation of x (B, C, ...) in ``nodes``, the last of which gives the result. gamma, beta: (C,)."""

    nodes: list[ir.Node]
    x: ir.Value
    gamma: Any
    beta: Any
    groups: int
    epsilon: float


def fuse_group_norm(model: ir.Model, keep: set[str]) -> Outcome:
    """Fuse each group normalisation of a float32 ``model``'s main graph, in place.

    keep: names of nodes that must stay in float32. A fused node is added to it if it replaces one of them.
    """
    matches, refusals = 0, []
    for node in list(model.graph):
        find = FORMS.get(node.op_type) if node.domain == "" else None
        if find is None:
            continue
        found = find(node)
        reason = found if isinstance(found, str) else _why_not(found)
        if isinstance(found, str) or reason is not None:
            refusals.append(Refusal(node.name or "", str(reason)))
            continue
        _replace(model.graph, found, keep)
        matches += 1
    if matches:
        model.opset_imports[DOMAIN] = 1
    return Outcome("fuse_group_norm", matches, tuple(refusals))


def _instances(normal: ir.Node) -> _Found | str:
    """The normalisation around an InstanceNormalization, or why there is none."""
    grouped = normal.inputs[0]
    before = None if grouped is None else grouped.producer()
    back = _reader(normal, "Reshape")
    scale = _reader(back, "Mul")
    shift = _reader(scale, "Add")
    if before is None or before.op_type != "Reshape" or back is None or scale is None or shift is None:
        return "it is not between two Reshapes, a scale and a bias"
    if _reader(before, normal.op_type) is None:
        return "its input is read by something else too"
    x, groups = before.inputs[0], group_count(before.inputs[1])
    if x is None or groups is None:
        return "its input is not reshaped to (batch, groups, rest)"
    if back.inputs[1] is None or not is_shape_of(back.inputs[1], x):
        return "its output is not reshaped back to the input's shape"
    if not is_filled(normal.inputs[1], 1) or not is_filled(normal.inputs[2], 0):
        return "InstanceNormalization has a scale or a bias of its own"
    weights: list[Any] = []
    for node, source in ((scale, back), (shift, scale)):
        array = _array(node.inputs[1] if node.inputs[0] is source.outputs[0] else node.inputs[0])
        wanted = [1] * (0 if x.shape is None else len(x.shape) - 2)
        if array is None or array.ndim < 2 or [*array.shape[-len(wanted) :]] != wanted:
            return "scale and bias are not one constant per channel"
        weights.append(array.reshape(-1))
    epsilon = normal.attributes.get_float("epsilon", 1e-5)
    return _Found([before, normal, back, scale, shift], x, weights[0], weights[1], groups, epsilon)


def _operator(normal: ir.Node) -> _Found | str:
    """The operator GroupNormalization, whose scale and bias are (C,) from opset 21 on."""
    x, gamma, beta = normal.inputs[0], _array(normal.inputs[1]), _array(normal.inputs[2])
    if x is None or gamma is None or beta is None:
        return "scale and bias are not one constant per channel"
    epsilon = normal.attributes.get_float("epsilon", 1e-5)
    return _Found([normal], x, gamma, beta, normal.attributes.get_int("num_groups", 1), epsilon)


FORMS = {"InstanceNormalization": _instances, "GroupNormalization": _operator}


def _why_not(found: _Found) -> str | None:
    x = found.x
    if x.dtype != ir.DataType.FLOAT or x.shape is None or len(x.shape) not in (3, 4):
        return "its input is not a float32 image (B, C, H, W) or sequence (B, C, L)"
    channels = x.shape[1]
    if not isinstance(channels, int) or channels % (2 * found.groups):
        return "its kernel takes an even number of channels in each group"
    if found.gamma.size != channels or found.beta.size != channels:
        return "scale and bias are not one constant per channel"
    return None


def _reader(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """The only reader of the output of ``node``, if it is of that type."""
    if node is None or len(uses := node.outputs[0].uses()) != 1 or node.outputs[0].is_graph_output():
        return None
    (reader,) = (use.node for use in uses)
    return reader if reader.op_type == op_type and reader.domain == "" and reader.graph is node.graph else None


def _silu(normal: ir.Node) -> list[ir.Node]:
    """The Sigmoid and the Mul that compute SiLU of the output of ``normal``, if nothing else reads it."""
    n = normal.outputs[0]
    readers = {use.node.op_type: use.node for use in n.uses()}
    if len(n.uses()) != 2 or n.is_graph_output() or set(readers) != {"Sigmoid", "Mul"}:
        return []
    product = _reader(readers["Sigmoid"], "Mul")
    return [readers["Sigmoid"], product] if product is readers["Mul"] else []


def _array(value: ir.Value | None) -> Any:
    tensor = constant_of(value)
    return None if tensor is None else tensor.numpy()


def _replace(graph: ir.Graph, found: _Found, keep: set[str]) -> None:
    silu = _silu(found.nodes[-1])
    nodes = [*found.nodes, *silu]
    result = nodes[-1].outputs[0]
    name = f"{result.name}.fused"
    weights = [
        add_constant(graph, f"{name}.{kind}", array) for kind, array in (("gamma", found.gamma), ("beta", found.beta))
    ]
    attributes = {"groups": found.groups, "epsilon": found.epsilon, "activation": int(bool(silu)), "channels_last": 0}
    output = ir.Value(name=name, type=found.x.type, shape=found.x.shape)
    fused = ir.node("GroupNorm", [found.x, *weights], attributes, domain=DOMAIN, outputs=[output], name=name)
    if not keep.isdisjoint(str(node.name) for node in nodes):
        keep.add(name)
    ir.convenience.replace_nodes_and_values(graph, nodes[-1], nodes, [fused], [result], [output])
