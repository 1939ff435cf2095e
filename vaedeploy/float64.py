"""PyTorch in float64, at a cost that one can pay.

PyTorch's own float64 convolution unfolds the whole picture: one 3x3 layer of 128 channels at 512x512 takes 2.4 GB and
runs at half the speed of a matrix product. ``float64_arithmetic`` replaces it, for 3x3 convolutions with
stride 1, by Winograd's minimal filtering in strips: a quarter of the multiplications, tens of megabytes, the same
result to about 1e-14 of its size. Group normalisation and SiLU before such a convolution are computed strip by strip as
well, when it asks for them, so that neither is ever whole in memory. Everything else is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# F(4x4, 3x3) of Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): a 4x4 tile of outputs from
# a 6x6 tile of inputs, as y = A^T ((G g G^T) * (B^T d B)) A. Kronecker products make each 2-D transform one matrix.
_TILE = 4
_SPAN = _TILE + 2
_B = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
_B += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
_G += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]

_STRIP_ELEMENTS = (
    4_000_000  # transformed elements held at once: 32 MB; few enough to be cached, enough to keep cores busy
)


class float64_arithmetic(TorchFunctionMode):  # noqa: N801 (a context manager, named as one)
    """Within this context, modules with float32 weights compute in float64 on float64 inputs.

    Each float32 tensor that meets an operation is widened first, which is exact, so the module itself is
    neither copied nor changed.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.silu and isinstance(args[0], _Deferred):
            return args[0].then(F.silu)
        if func is F.conv2d and not kwargs and _is_plain_3x3(*args):
            return conv3x3(args[0], *map(_ready, args[1:3]))
        args = [_ready(a) for a in args]
        kwargs = {name: _ready(a) for name, a in kwargs.items()}
        if func is F.group_norm and not kwargs and args[0].dtype == torch.float64 and args[0].dim() == 4:
            return _deferred_group_norm(*args)
        if func is F.conv2d and not kwargs and args[0].dim() == 4:
            return _conv_in_strips(*args)
        return func(*args, **kwargs)


class _Deferred(Tensor):
    """A (B, C, H, W) float64 tensor whose rows are computed when they are asked for."""

    source: Tensor
    rows: Callable[[int, int, int], Tensor]  # (item, first, last) -> (C, last - first, W)

    @staticmethod
    def of(source: Tensor, rows: Callable[[int, int, int], Tensor]) -> _Deferred:
        made = Tensor._make_wrapper_subclass(_Deferred, source.shape, dtype=source.dtype)
        made.source, made.rows = source, rows
        return made

    def then(self, func: Callable[[Tensor], Tensor]) -> _Deferred:
        """An elementwise ``func`` of this."""
        return _Deferred.of(self.source, lambda item, first, last: func(self.rows(item, first, last)))

    def whole(self) -> Tensor:
        batch, _, height, _ = self.source.shape
        return torch.stack([self.rows(item, 0, height) for item in range(batch)])


def _deferred_group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> _Deferred:
    batch, channels = x.shape[:2]
    variance, mean = torch.var_mean(x.reshape(batch, groups, -1), dim=2, correction=0)
    scale = (variance + eps).rsqrt().repeat_interleave(channels // groups, 1)
    scale = scale if weight is None else scale * weight
    offset = -mean.repeat_interleave(channels // groups, 1) * scale
    offset = offset if bias is None else offset + bias
    scale, offset = scale[:, :, None, None], offset[:, :, None, None]
    return _Deferred.of(x, lambda item, first, last: x[item, :, first:last] * scale[item] + offset[item])


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=1)`` for ``x`` (B, C, H, W) and a ``weight`` (O, C, 3, 3), both float64."""
    with torch._C.DisableTorchFunction():
        rows = x.rows if isinstance(x, _Deferred) else lambda item, first, last: x[item, :, first:last]
        return _winograd(rows, x.shape, weight, bias)


def _winograd(
    rows: Callable[[int, int, int], Tensor], shape: torch.Size, weight: Tensor, bias: Tensor | None
) -> Tensor:
    batch, channels, height, width = shape
    outputs = len(weight)
    to_tiles, to_kernel, to_outputs = (torch.kron(m, m) for m in (_matrix(_B), _matrix(_G), _matrix(_A)))
    kernel = (to_kernel @ weight.reshape(outputs * channels, 9).T).reshape(_SPAN**2, outputs, channels)
    result = weight.new_empty(batch, outputs, height, width)
    columns = -(-width // _TILE)
    deepest = min(-(-height // _TILE), max(1, _STRIP_ELEMENTS // (max(channels, outputs) * columns * _SPAN**2)))
    # Memory fresh from the system costs more than the arithmetic, so every strip uses the same.
    spans = weight.new_empty(2, _SPAN**2, channels * deepest * columns)
    products = weight.new_empty(_SPAN**2, outputs * deepest * columns)
    for item in range(batch):
        for top in range(0, height, deepest * _TILE):
            deep = min(deepest * _TILE, height - top)
            tile_rows = -(-deep // _TILE)
            first, last = top - 1, top + tile_rows * _TILE + 1
            part = rows(item, max(0, first), min(height, last))
            part = F.pad(part, (1, columns * _TILE + 1 - width, max(0, -first), max(0, last - height)))
            gathered, tiles = spans[:, :, : channels * tile_rows * columns]
            overlapping = part.unfold(1, _SPAN, _TILE).unfold(2, _SPAN, _TILE).permute(3, 4, 0, 1, 2)
            gathered.view(overlapping.shape).copy_(overlapping)
            torch.mm(to_tiles, gathered, out=tiles)
            made = products[:, : outputs * tile_rows * columns]
            for k in range(_SPAN**2):  # 36 products by hand: torch.bmm is three times slower here
                torch.mm(kernel[k], tiles[k].view(channels, -1), out=made[k].view(outputs, -1))
            y = (to_outputs @ made).view(_TILE, _TILE, outputs, tile_rows, columns).permute(2, 3, 0, 4, 1)
            result[item, :, top : top + deep] = y.reshape(outputs, tile_rows * _TILE, -1)[:, :deep, :width]
    return result if bias is None else result.add_(bias[:, None, None])


def _conv_in_strips(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """``F.conv2d``, some rows at a time, so that what it unfolds stays small."""
    if isinstance(padding, str) or any(value != 0 for value in _pair(padding)):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    (step, _), (spread, _) = _pair(stride), _pair(dilation)
    reach = spread * (weight.shape[2] - 1) + 1
    count = (x.shape[2] - reach) // step + 1
    deep = max(1, _STRIP_ELEMENTS // (weight[0].numel() * x.shape[3]))
    strips = [
        F.conv2d(
            x[:, :, top * step : (min(top + deep, count) - 1) * step + reach], weight, bias, stride, 0, dilation, groups
        )
        for top in range(0, count, deep)
    ]
    return torch.cat(strips, dim=2)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _matrix(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _ready(value: Any) -> Any:
    """A tensor that any operation can take: computed, and in float64 where it was in float32."""
    if isinstance(value, _Deferred):
        with torch._C.DisableTorchFunction():
            return value.whole()
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _is_plain_3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> bool:  # fmt: skip
    with torch._C.DisableTorchFunction():
        shapes_fit = x.dtype == torch.float64 and x.dim() == 4 and weight.shape[2:] == (3, 3)
    return shapes_fit and groups == 1 and all(value in (1, (1, 1), [1, 1]) for value in (stride, padding, dilation))
