"""The first place where a PyTorch module gives NaN or infinity."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vaedeploy.values.reference import eval_mode


def broken_tensor(module: nn.Module) -> str | None:
    """The first parameter or buffer with NaN, or parameter with infinity, in words; None if there is none."""
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if not tensor.is_floating_point():
            continue
        if tensor.isnan().any():
            return f"NaN in its tensor {name}"
        if isinstance(tensor, nn.Parameter) and tensor.isinf().any():  # a buffer may be a mask
            return f"infinity in its tensor {name}"
    return None


def first_break(module: nn.Module, value: Tensor) -> str | None:
    """The first place in ``module`` with NaN or infinity when it runs on ``value`` in float32, in words; None if there
    is none.
    """
    found: list[str] = []
    names = {each: f"{name} ({type(each).__name__})" for name, each in module.named_modules() if name}

    def before(each: nn.Module, given: tuple[Any, ...]) -> None:
        if not found and not _is_finite(given):
            found.append(f"in what {names[each]} is given")

    def after(each: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        if not found and not _is_finite(result):
            found.append(f"in what {names[each]} gives")

    hooks = [
        hook for each in names for hook in (each.register_forward_pre_hook(before), each.register_forward_hook(after))
    ]
    try:
        with torch.no_grad(), eval_mode(module):
            result = module(value)
    finally:
        for hook in hooks:
            hook.remove()
    if not found and not _is_finite(result):
        found.append(f"after the last of its modules, in {type(module).__name__}.forward")
    return found[0] if found else None


def _is_finite(value: Any) -> bool:
    tensors = (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
