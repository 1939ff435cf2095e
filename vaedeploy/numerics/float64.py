"""Runs PyTorch modules in float64 with little memory and time.

Convolutions run in strips (3x3 ones by ``winograd``). Group normalisation, SiLU and upsampling before a 3x3 convolution
are computed strip by strip as well, when the convolution asks for a strip, so that their results are never whole in
memory. Everything else is computed by PyTorch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from vaedeploy.numerics.winograd import STRIP_ELEMENTS, Rows, convolve
from vaedeploy.system.heap import trim_heap
from vaedeploy.system.torch_state import plain_torch

LARGE = 2**24
"""Results of more elements than this are rounded to float32 between operations, which still compute in float64.

This halves the memory that a 512x512 image takes. The rounding error, 6e-8, is that of golden cases, which are stored
in float32.
"""


def call_in_float64(module: Callable[[Tensor], Any], x: Tensor) -> tuple[Tensor, ...]:
    """The outputs, one or several, of ``module``, whose weights are float32, computed in float64 for ``x``.

    Each float32 tensor is widened before an operation reads it, which is exact, so the module is neither copied nor
    changed. A module that changes tensors in place is copied after all, and runs PyTorch's own operations.
    """
    with plain_torch():
        try:
            with _Float64Arithmetic():
                result = module(x.double())
        except _InPlaceError:
            result = _call_copy(module, x.double())
    results = result if isinstance(result, tuple) else (result,)
    return tuple((r.whole() if isinstance(r, _Deferred) else r).double().contiguous() for r in results)


WORTHWHILE = 2048
"""The fewest pixels in a batch for ``winograd``: from there on, transforming a kernel of 512 x 512 channels takes less
time than it saves.
"""


def _call_copy(module: Callable[[Tensor], Any], x: Tensor) -> Any:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # for tensors that the module creates
    try:
        return (copy.deepcopy(module).double() if isinstance(module, nn.Module) else module)(x)
    finally:
        torch.set_default_dtype(previous)


class _Float64Arithmetic(TorchFunctionMode):
    """Context in which PyTorch's functions compute as ``call_in_float64`` describes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _changes_its_argument(func, kwargs):
            raise _InPlaceError
        if func is F.silu and isinstance(args[0], _Deferred):
            return args[0].then(F.silu)
        if func is F.dropout and not kwargs.get("training", True):
            return args[0]
        if func is F.conv2d and not kwargs and _is_plain_3x3(*args):
            return conv3x3(args[0], *map(_widened, args[1:3]))
        args = [a.whole() if isinstance(a, _Deferred) else a for a in args]
        kwargs = {name: a.whole() if isinstance(a, _Deferred) else a for name, a in kwargs.items()}
        if func is F.group_norm and args[0].dim() == 4:
            return _deferred_group_norm(*args, **kwargs)
        if func is F.interpolate and args[0].dim() == 4 and _is_plain_doubling(*args[1:], **kwargs):
            return _deferred_doubling(args[0])
        if func is F.conv2d and not kwargs and args[0].dim() == 4:
            return _conv_in_strips(args[0], *map(_widened, args[1:]))
        if func in (Tensor.div, torch.div) and not kwargs and isinstance(args[1], float) and args[1] == 1.0:
            return args[0]
        if func in (Tensor.add, torch.add) and not kwargs and all(map(_is_rounded, args)):
            return func(*args)  # a float32 sum of float32 numbers is the float64 sum, rounded once
        if func is F.pad and _is_rounded(args[0]):
            return func(*args, **kwargs)
        return _stored(func(*map(_widened, args), **{name: _widened(a) for name, a in kwargs.items()}))


class _InPlaceError(Exception):
    """An operation writes to a tensor from which others were deferred or rounded; their values would be stale."""


def _changes_its_argument(func: Any, kwargs: Any) -> bool:
    name = getattr(func, "__name__", "")
    in_place = name in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
    return in_place or bool(kwargs.get("inplace")) or kwargs.get("out") is not None


_IN_PLACE_OPERATORS = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__")


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _stored(value: Any) -> Any:
    """``value`` in the dtype in which it is stored until the next operation; see ``LARGE``."""
    if isinstance(value, Tensor) and value.dtype == torch.float64 and value.numel() > LARGE:
        return value.float()
    return value


def _is_rounded(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.numel() > LARGE


class _Deferred(Tensor):
    """A (B, C, H, W) float64 tensor whose rows are computed on request."""

    rows: Rows

    @staticmethod
    def of(shape: Sequence[int], rows: Rows) -> _Deferred:
        tensor = Tensor._make_wrapper_subclass(_Deferred, shape, dtype=torch.float64)
        tensor.rows = rows
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute all rows first for an operation that cannot defer, such as one that takes a list of tensors."""
        args, kwargs = tree_map_only(_Deferred, _Deferred.whole, (args, kwargs or {}))
        return func(*args, **kwargs)

    def then(self, func: Callable[[Tensor], Tensor]) -> _Deferred:
        """The result of an elementwise ``func``, deferred as well."""
        with torch._C.DisableTorchFunction():
            return _Deferred.of(self.shape, lambda item, first, last: func(self.rows(item, first, last)))

    def whole(self) -> Tensor:
        """The plain tensor, with all rows computed."""
        with torch._C.DisableTorchFunction():
            batch, _, height, _ = self.shape
            return torch.stack([self.rows(item, 0, height) for item in range(batch)])


def _deferred_group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> _Deferred:
    batch, channels = x.shape[:2]
    moments = [_moments(group) for group in x.reshape(batch * num_groups, -1)]
    variance, mean = (torch.stack(m).reshape(batch, num_groups) for m in zip(*moments, strict=True))
    scale = (variance + eps).rsqrt().repeat_interleave(channels // num_groups, 1)
    scale = scale if weight is None else scale * weight
    offset = -mean.repeat_interleave(channels // num_groups, 1) * scale
    offset = offset if bias is None else offset + bias
    scale, offset = scale[:, :, None, None], offset[:, :, None, None]
    return _Deferred.of(x.shape, lambda item, first, last: x[item, :, first:last] * scale[item] + offset[item])


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean, in two passes: torch.var_mean, which makes one pass, takes four times as long."""
    values = values.to(torch.float64, copy=True)
    mean = values.mean()
    return torch.linalg.vector_norm(values.sub_(mean)).square() / values.numel(), mean


def _is_plain_doubling(size: Any = None, scale_factor: Any = None, mode: str = "nearest", **others: Any) -> bool:
    return size is None and scale_factor in (2, (2, 2), [2, 2]) and mode == "nearest" and not any(others.values())


def _deferred_doubling(x: Tensor) -> _Deferred:
    """Nearest-neighbour upsampling by 2 of a (B, C, H, W) tensor, deferred."""

    def rows(item: int, first: int, last: int) -> Tensor:
        part = x[item, :, first // 2 : -(-last // 2)].double().repeat_interleave(2, 1)
        return part[:, first % 2 : first % 2 + last - first].repeat_interleave(2, 2)

    batch, channels, height, width = x.shape
    return _Deferred.of((batch, channels, 2 * height, 2 * width), rows)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=1)`` for ``x`` (B, C, H, W) and a ``weight`` (O, C, 3, 3) in float64."""

    def rows(item: int, first: int, last: int) -> Tensor:
        return x[item, :, first:last].double()

    with torch._C.DisableTorchFunction():
        large = len(x) * len(weight) * x.shape[2] * x.shape[3] > LARGE
        if large:
            trim_heap()  # strips of other shapes left 0.3 GB unused in the heap
        source = x.rows if isinstance(x, _Deferred) else rows
        return convolve(source, x.shape, weight, bias, torch.float32 if large else torch.float64)


def _conv_in_strips(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """``F.conv2d``, computed some rows at a time, so that the unfolded input stays small."""
    if isinstance(padding, str):
        whole: Tensor = _stored(F.conv2d(_widened(x), weight, bias, stride, padding, dilation, groups))
        return whole
    (stride_y, stride_x), (dilation_y, dilation_x), (pad_y, pad_x) = _pair(stride), _pair(dilation), _pair(padding)
    x = F.pad(x, (pad_x, pad_x, pad_y, pad_y)) if pad_y or pad_x else x
    span = dilation_y * (weight.shape[2] - 1) + 1
    rows = (x.shape[2] - span) // stride_y + 1
    columns = (x.shape[3] - dilation_x * (weight.shape[3] - 1) - 1) // stride_x + 1
    large = len(x) * len(weight) * rows * columns > LARGE
    depth = max(1, STRIP_ELEMENTS // (weight[0].numel() * columns))
    result = torch.empty(len(x), len(weight), rows, columns, dtype=torch.float32 if large else torch.float64)
    for top in range(0, rows, depth):
        part = x[:, :, top * stride_y : (min(top + depth, rows) - 1) * stride_y + span].double()
        result[:, :, top : top + depth] = F.conv2d(part, weight, bias, stride, 0, dilation, groups)
    return result


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _is_plain_3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> bool:  # fmt: skip
    with torch._C.DisableTorchFunction():
        shapes_fit = x.is_floating_point() and x.dim() == 4 and weight.shape[2:] == (3, 3)
        shapes_fit = shapes_fit and len(x) * x.shape[2] * x.shape[3] >= WORTHWHILE
    return shapes_fit and groups == 1 and all(value in (1, (1, 1), [1, 1]) for value in (stride, padding, dilation))
