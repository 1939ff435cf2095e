"""What several rules need when they change a graph: operators and types by kind, free names, tensors computed late."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from vaedeploy.values.kinds import Precision

LOWER: Mapping[Precision, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""The types of half precision."""

LOWER_TYPES = frozenset(LOWER.values())

NORMALIZATIONS = frozenset(
    {"InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization", "LpNormalization"}
)
"""Operators that divide by a deviation or a norm. All but LpNormalization add an epsilon to it."""


def free_name(name: str, taken: Collection[str | None]) -> str:
    """``name``, with underscores behind it where it is taken."""
    while name in taken:
        name += "_"
    return name


def lazy_tensor(
    tensor: ir.TensorProtocol, function: Callable[[NDArray[Any]], NDArray[Any]], dtype: ir.DataType, name: str | None
) -> ir.LazyTensor:
    """``function`` of a tensor's numbers, computed each time that it is read, so that it takes no memory until then.

    function: keeps the shape and gives numbers of ``dtype``.
    """

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(function(tensor.numpy()), dtype=dtype, name=name)

    return ir.LazyTensor(compute, dtype, ir.Shape(tensor.shape.numpy()), name=name)
