"""Turns the statistics of normalisations into inputs, so that what is left of them is local.

A group normalisation of x (B, C, ...), as exporters write it,

    y = Reshape(InstanceNormalization(Reshape(x, [0, G, -1])), Shape(x)) * gamma + beta

becomes, with the mean m and v = 1 / sqrt(variance + epsilon) of each channel's group as inputs of the graph,

    y = (x - m) * (v * gamma) + beta.

The operator GroupNormalization of opset 21 and later becomes the same. Whoever runs the pieces computes m and v from
the means and variances of x's rows, combined in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vaedeploy.graph.edit import add_constant, constant_of, free_name
from vaedeploy.rewrite.normalization import group_count, is_filled, is_shape_of
from vaedeploy.rewrite.rows.layout import NotByRowsError

__all__ = ["Statistics", "take_statistics_as_inputs"]


@dataclass(frozen=True)
class Statistics:
    """One normalisation of ``x`` over groups of its channels. mean, inverse: the inputs, (1, C, 1, ...)."""

    x: ir.Value
    groups: int
    epsilon: float
    mean: ir.Value
    inverse: ir.Value


def take_statistics_as_inputs(model: ir.Model) -> list[Statistics]:
    """Make the statistics of every group normalisation of the main graph inputs of it, in place.

    Equal normalisations of a tensor share inputs. Raises NotByRowsError for other kinds of normalisation over
    positions.
    """
    found: dict[tuple[ir.Value, int, float], Statistics] = {}
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "InstanceNormalization":
            _replace_instances(model.graph, node, found)
        elif node.domain == "" and node.op_type == "GroupNormalization":
            _replace_groups(model.graph, node, found)
    return list(found.values())


def _replace_instances(graph: ir.Graph, node: ir.Node, found: dict[Any, Statistics]) -> None:
    grouped, scale, bias = node.inputs[:3]
    before = None if grouped is None else grouped.producer()
    readers = [reader for reader, _ in node.outputs[0].uses()]
    if before is None or before.op_type != "Reshape" or [reader.op_type for reader in readers] != ["Reshape"]:
        raise NotByRowsError(str(node.name), "it normalises, and not over groups of channels between two Reshapes")
    x, back = before.inputs[0], readers[0]
    groups = group_count(before.inputs[1])
    if x is None or groups is None:
        raise NotByRowsError(str(node.name), "it normalises, and not over (batch, groups, rest)")
    if not is_filled(scale, 1) or not is_filled(bias, 0):
        raise NotByRowsError(str(node.name), "it normalises with weights for each group")
    if back.inputs[1] is None or not is_shape_of(back.inputs[1], x):
        raise NotByRowsError(str(node.name), "what it normalises is not reshaped back to what it was")
    statistics = _statistics(graph, node, x, groups, found)
    _apply(graph, back, statistics)


def _replace_groups(graph: ir.Graph, node: ir.Node, found: dict[Any, Statistics]) -> None:
    x, scale, bias = node.inputs[:3]
    tensors = constant_of(scale), constant_of(bias)
    if x is None or tensors[0] is None or tensors[1] is None:
        raise NotByRowsError(str(node.name), "the weights of its normalisation are not constant")
    statistics = _statistics(graph, node, x, node.attributes.get_int("num_groups", 1), found)
    per_channel = (-1, *[1] * (len(statistics.mean.shape or ()) - 2))
    gamma, beta = (
        add_constant(graph, f"{value.name}.rows", tensor.numpy().reshape(per_channel))
        for value, tensor in zip((scale, bias), tensors, strict=True)
        if value is not None and tensor is not None
    )
    nodes = _local_nodes(statistics, node, gamma)
    nodes.append(ir.node("Add", [nodes[-1].outputs[0], beta], name=f"{node.name}.rows.shifted"))
    _substitute(graph, node, nodes)


def _statistics(graph: ir.Graph, node: ir.Node, x: ir.Value, groups: int, found: dict[Any, Statistics]) -> Statistics:
    """The statistics of ``x`` as inputs of the graph: new ones, or those that another node has already."""
    if x.dtype != ir.DataType.FLOAT or x.shape is None or len(x.shape) < 3 or not isinstance(x.shape[1], int):
        raise NotByRowsError(str(node.name), "what it normalises is not float32 with a known number of channels")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    key = x, groups, epsilon
    if key not in found:
        shape = [1, x.shape[1], *[1] * (len(x.shape) - 2)]
        taken = {value.name for value in graph.inputs}
        inputs = []
        for kind in ("mean", "inverse"):
            name = free_name(f"{x.name}.{kind}", taken)
            inputs.append(ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape)))
            graph.inputs.append(inputs[-1])
        if x.is_graph_input():  # no piece computes it, and only pieces give statistics
            same = ir.node("Identity", [x], name=f"{x.name}.normalised")
            same.outputs[0].name, same.outputs[0].type, same.outputs[0].shape = same.name, x.type, x.shape
            graph.insert_before(next(iter(graph)), same)
            x = same.outputs[0]
        found[key] = Statistics(x, groups, epsilon, *inputs)
    return found[key]


def _apply(graph: ir.Graph, back: ir.Node, statistics: Statistics) -> None:
    """Replace the second Reshape of a normalisation, and the multiplication by gamma if that is its only reader."""
    gamma, last = None, back
    users = [(reader, index) for reader, index in back.outputs[0].uses() if reader.op_type == "Mul"]
    if len(users) == len(back.outputs[0].uses()) == 1 and not back.outputs[0].is_graph_output():
        ((reader, index),) = users
        other = reader.inputs[1 - index]
        sizes_of_mean = list(statistics.mean.shape or ())
        channels, rank = sizes_of_mean[1], len(sizes_of_mean)
        sizes = None if other is None or constant_of(other) is None or other.shape is None else list(other.shape)
        if sizes is not None and sizes[-(rank - 1) :] == [channels, *[1] * (rank - 2)]:
            gamma, last = other, reader
    _substitute(graph, last, _local_nodes(statistics, back, gamma))


def _local_nodes(statistics: Statistics, node: ir.Node, gamma: ir.Value | None) -> list[ir.Node]:
    nodes, scale = [], statistics.inverse
    if gamma is not None:
        nodes.append(ir.node("Mul", [scale, gamma], name=f"{node.name}.rows.scale"))
        nodes[-1].outputs[0].type, nodes[-1].outputs[0].shape = scale.type, scale.shape
        scale = nodes[-1].outputs[0]
    nodes.append(ir.node("Sub", [statistics.x, statistics.mean], name=f"{node.name}.rows.centred"))
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], scale], name=f"{node.name}.rows.scaled"))
    for number, made in enumerate(nodes):
        (value,) = made.outputs
        value.name = f"{node.outputs[0].name}.rows.{number}"
        if value.shape is None:
            value.type, value.shape = statistics.x.type, statistics.x.shape
    return nodes


def _substitute(graph: ir.Graph, last: ir.Node, nodes: list[ir.Node]) -> None:
    """Put ``nodes`` in place of ``last``; nodes that are no longer read stay in the graph."""
    old, new = last.outputs[0], nodes[-1].outputs[0]
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, last, [last], nodes, [old], [new])
