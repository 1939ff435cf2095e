"""Helpers that rewrite rules share: operators and types by kind, unused names, tensors that are computed when read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from vaedeploy.values.kinds import Precision

LOWER: Mapping[Precision, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""Half precision -> its ONNX data type."""

LOWER_TYPES = frozenset(LOWER.values())

NORMALIZATIONS = frozenset(
    {"InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization", "LpNormalization"}
)
"""Operators that divide by a standard deviation or a norm. All except LpNormalization add an epsilon under the root."""


def free_name(name: str, taken: Collection[str | None]) -> str:
    """``name``, with underscores appended until it is not in ``taken``."""
    while name in taken:
        name += "_"
    return name


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that ``value`` holds in every run, or None.

    TorchScript's exporter shares equal weights through Identities, so their outputs are constant too. An initializer
    that is also a graph input is not: a caller may give another value.
    """
    if value is None or value.is_graph_input():
        return None
    node = value.producer()
    if node is not None and node.op_type == "Identity" and node.domain == "":
        return constant_of(node.inputs[0])
    return ir.convenience.get_const_tensor(value)


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer of ``graph``. name: underscores are appended if an initializer has it already."""
    name = free_name(name, graph.initializers)
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def lazy_tensor(
    tensor: ir.TensorProtocol, function: Callable[[NDArray[Any]], NDArray[Any]], dtype: ir.DataType, name: str | None
) -> ir.LazyTensor:
    """A tensor that is ``function`` of ``tensor``, computed each time that it is read.

    It takes no memory until it is read. function: takes an array and returns one of the same shape, in ``dtype``.
    """

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(function(tensor.numpy()), dtype=dtype, name=name)

    return ir.LazyTensor(compute, dtype, ir.Shape(tensor.shape.numpy()), name=name)
