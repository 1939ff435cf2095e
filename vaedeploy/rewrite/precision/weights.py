"""Rounds weights to half precision, once and one at a time, and counts what the rounding loses."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vaedeploy.errors import InputError
from vaedeploy.graph.edit import lazy_tensor

FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Underflow:
    """How many numbers of one weight, not zero in float32, became zero or subnormal in the lower type.

    size: how many numbers the weight has in all.
    """

    tensor: str
    zeros: int
    subnormals: int
    size: int


def rounded(array: NDArray[np.float32], low: ir.DataType) -> NDArray[np.generic]:
    """``array`` rounded to nearest, ties to even; numbers beyond the type's range become infinity."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return array.astype(low.numpy())


def lazily_rounded(tensor: ir.TensorProtocol, low: ir.DataType, name: str) -> ir.LazyTensor:
    """``tensor`` rounded anew each time it is read; the result is not kept in memory."""
    return lazy_tensor(tensor, lambda array: rounded(array, low), low, name)


def count_underflow(name: str, tensor: ir.TensorProtocol, low: ir.DataType) -> Underflow:
    """Count what rounding ``tensor`` would lose. Raises InputError where a finite number would become infinity."""
    before = tensor.numpy()
    limits = ml_dtypes.finfo(low.numpy())  # type: ignore[no-untyped-call]
    # Compared in float32, which represents every number of the lower types.
    before, after = np.abs(before), np.abs(rounded(before, low).astype(np.float32))
    if over := int(np.sum(np.isinf(after) & np.isfinite(before))):
        largest = float(np.max(before, where=np.isfinite(before), initial=0))
        raise InputError(
            f"{over} of {before.size} numbers of the weight {name} are beyond {low.name.lower()}'s range: up to "
            f"{largest:.6g}, and the largest that it has is {float(limits.max):.6g}. Rescale the graph first, or "
            "keep the nodes that read the weight in float32 (keep_fp32)"
        )
    subnormal = (after > 0) & (after < float(limits.smallest_normal))
    return Underflow(name, int(np.sum((after == 0) & (before > 0))), int(np.sum(subnormal)), before.size)


def is_lost(value: ir.Value, low: ir.DataType) -> bool:
    """Whether ``value`` is a single constant number, finite and not zero, that rounding makes zero or infinity."""
    tensor = value.const_value
    if tensor is None or tensor.dtype != FLOAT or tensor.size != 1:
        return False
    number = tensor.numpy()
    after = rounded(number, low).astype(np.float32)
    return bool(np.any((number != 0) & np.isfinite(number) & ((after == 0) | np.isinf(after))))
