"""Reference implementations of those of ONNX Runtime's own operators that have CUDA kernels and no CPU kernels.

They compute in float32, convolutions in float64, and round once to the type of the first input, as those kernels do.
Sources: the operators' schemas in ONNX Runtime (``contrib_defs``), and its CUDA kernels where these say nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_conv, op_resize

Array = NDArray[Any]


def _wide(array: Array) -> Array:
    return array.astype(np.float32)


def _convolution(x: Array, w: Array, b: Array | None, attributes: dict[str, Any]) -> Array:
    """ONNX's own Conv, summed in float64 and rounded once: what is summed in another order has the same float32."""
    found = op_conv.Conv.eval(
        x.astype(np.float64),
        w.astype(np.float64),
        None if b is None else b.astype(np.float64),
        **{name: value for name, value in attributes.items() if value is not None},
    )
    return found.astype(np.float32).astype(x.dtype)


class Conv(OpRun):
    """In the place of ONNX's, so that both kinds of convolution are summed alike."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
        return (_convolution(x, w, b, attributes),)


class Resize(op_resize.Resize):
    """ONNX's own, which in onnx 1.19 reads a ``roi`` that is empty, as older exporters write it for none."""

    op_domain = ""

    def _run(self, x: Array, roi: Array | None = None, *others: Any, **attributes: Any) -> tuple[Array]:
        return super()._run(x, roi if roi is not None and roi.size else None, *others, **attributes)


class NhwcConv(OpRun):
    """Conv of x (B, H, W, C) with kernels (O, kH, kW, C / group)."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
        first = _convolution(x.transpose(0, 3, 1, 2), w.transpose(0, 3, 1, 2), b, attributes)
        return (np.ascontiguousarray(first.transpose(0, 2, 3, 1)),)


def _group_norm(
    x: Array, gamma: Array, beta: Array, groups: int, epsilon: float, activation: int, channels_last: int
) -> Array:
    """Group normalisation of x (B, H, W, C), whose variance is the mean of the squares less the square of the mean."""
    assert channels_last == 1
    assert gamma.dtype == beta.dtype == np.float32
    batch, *sizes, channels = x.shape
    wide = _wide(x).reshape(batch, -1, groups, channels // groups)
    mean = wide.mean(axis=(1, 3), keepdims=True, dtype=np.float32)
    variance = (wide * wide).mean(axis=(1, 3), keepdims=True, dtype=np.float32) - mean * mean
    with np.errstate(invalid="ignore"):  # what has no deviation may have a variance below zero: the result is NaN
        deviation = np.sqrt(variance + np.float32(epsilon))
    normal = ((wide - mean) / deviation).reshape(batch, *sizes, channels) * gamma + beta
    return (normal / (1 + np.exp(-normal)) if activation else normal).astype(x.dtype)


class GroupNorm(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x: Array, gamma: Array, beta: Array, **attributes: Any) -> tuple[Array]:
        return (_group_norm(x, gamma, beta, **attributes),)


class MultiHeadAttention(OpRun):
    """Attention of query (B, N, H * D), key (B, M, H * D) and value (B, M, H * E)."""

    op_domain = "com.microsoft"

    def _run(self, query: Array, key: Array, value: Array, num_heads: int, scale: float) -> tuple[Array]:
        def heads(array: Array) -> Array:
            return _wide(array).reshape(*array.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)

        scores = heads(query) @ heads(key).transpose(0, 1, 3, 2) * np.float32(scale)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ heads(value)
        return (mixed.transpose(0, 2, 1, 3).reshape(*query.shape[:2], -1).astype(query.dtype),)


def evaluator(model: Any) -> ReferenceEvaluator:
    """Runs ``model``, an ONNX model or the path of one, on the CPU."""
    given = onnx.load(model) if isinstance(model, Path) else model
    return ReferenceEvaluator(given, new_ops=[Conv, Resize, NhwcConv, GroupNorm, MultiHeadAttention])
