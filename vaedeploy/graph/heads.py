"""Attention without an axis of heads, as the exporter takes it.

``scaled_dot_product_attention`` takes queries with two or more axes; torch's exporter takes only four, (batch, heads,
tokens, channels). One added head gives the same function.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

AXES = 4
"""How many axes of queries, keys and values the exporter takes."""


class OneHead(TorchFunctionMode):
    """Context in which attention with fewer than 4 axes is computed with 4. Added axes have length 1."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        axes: int = given["query"].ndim
        if not 2 <= axes < AXES or {given["key"].ndim, given["value"].ndim} != {axes}:
            return func(*args, **kwargs)
        mask = given.get("attn_mask")
        if mask is not None and mask.ndim == 3:  # one of two axes is the same for every item and head, and stays so
            given["attn_mask"] = mask.unsqueeze(1)
        query, key, value = (_widened(given.pop(name)) for name in names[:3])
        result: Tensor = func(query, key, value, **given)
        return result.squeeze(1) if axes == 3 else result[0, 0]


def _widened(tensor: Tensor) -> Tensor:
    """(B, T, C) -> (B, 1, T, C), and (T, C) -> (1, 1, T, C)."""
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor[None, None]
