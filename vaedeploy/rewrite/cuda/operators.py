"""ONNX Runtime's own operators that its CUDA provider runs, and that graphs rewritten for that provider use.

They are not part of ONNX: their domain is ``com.microsoft``, and ``onnx`` has no schema for them.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["DOMAIN", "FLOATS", "INPUTS"]

DOMAIN = "com.microsoft"

FLOATS = frozenset({"tensor(float)", "tensor(float16)"})
"""The types that T stands for in ``INPUTS``. None of these operators has a kernel for bfloat16."""

INPUTS: Mapping[str, tuple[str, ...]] = {
    "NhwcConv": ("T", "T", "T"),
    "GroupNorm": ("T", "tensor(float)", "tensor(float)"),
    "MultiHeadAttention": ("T", "T", "T"),
}
"""Operator -> the type of each input: T, which is the outputs' type too, or a fixed one."""
