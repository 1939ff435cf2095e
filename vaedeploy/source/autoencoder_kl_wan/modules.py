"""One frame of diffusers' classes for Wan's VAEs and their kin as two plain 2-D modules, without a cache of frames."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaedeploy.source.halves import Decoder, Encoder
from vaedeploy.source.oneframe import NearestDouble, frame_convolution

PREFIX = re.compile("^(QwenImage21|Wan)")

SHORTEST = 1e-12
"""The least length by which a pixel's channels are divided, as in torch.nn.functional.normalize."""

LAST = -1
"""The slice of a kernel over frames that meets the first frame, with zeros before it."""


def encoder(vae: Any, patch: int) -> nn.Module:
    """The encoder on one frame. patch: pixels along a side of the patches that it takes as one."""
    whole = vae.encoder
    layers = nn.Sequential(
        *((nn.PixelUnshuffle(patch),) if patch > 1 else ()),
        _patched(flat(whole.conv_in), patch, dim=1),
        *(flat(block) for block in whole.down_blocks),
        flat(whole.mid_block),
        flat(whole.norm_out),
        whole.nonlinearity,
        flat(whole.conv_out),
    )
    return Encoder(layers, flat(vae.quant_conv))


def decoder(vae: Any, patch: int) -> nn.Module:
    """The decoder on one frame, without the clamp of diffusers' decode: a clamp hides infinity. patch: as above."""
    whole = vae.decoder
    layers = nn.Sequential(
        flat(whole.conv_in),
        flat(whole.mid_block),
        *(flat(block) for block in whole.up_blocks),
        flat(whole.norm_out),
        whole.nonlinearity,
        _patched(flat(whole.conv_out), patch, dim=0),
        *((nn.PixelShuffle(patch),) if patch > 1 else ()),
    )
    return Decoder(layers, flat(vae.post_quant_conv))


class Norm(nn.Module):
    """Each pixel's channels divided by their root mean square, times a weight per channel."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.gamma = nn.Parameter(norm.gamma.detach().reshape(-1, 1, 1))
        self.root: float = norm.scale

    def forward(self, x: Tensor) -> Tensor:
        # diffusers calls normalize, which expands the lengths to the size of x before it divides.
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(SHORTEST)
        result: Tensor = x / length * (self.root * self.gamma)
        return result


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.conv1 = flat(block.norm1), flat(block.conv1)
        self.norm2, self.conv2 = flat(block.norm2), flat(block.conv2)
        self.conv_shortcut = flat(block.conv_shortcut)
        self.nonlinearity = block.nonlinearity

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.nonlinearity(self.norm1(x)))
        y = self.conv2(self.nonlinearity(self.norm2(y)))
        result: Tensor = y + self.conv_shortcut(x)
        return result


class Attention(nn.Module):
    """Attention of all pixels of the frame, with one head."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm, self.to_qkv, self.proj = flat(block.norm), block.to_qkv, block.proj

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(batch, 1, 3 * channels, height * width).transpose(2, 3)
        query, key, value = qkv.chunk(3, dim=3)
        y = F.scaled_dot_product_attention(query, key, value)
        y = y.transpose(2, 3).reshape(batch, channels, height, width)
        result: Tensor = self.proj(y) + x
        return result


class MeanDown(nn.Module):
    """Means of groups of the values in patches of ``side`` x ``side`` pixels: (B, C, H, W) -> (B, D, H/side, W/side).

    Where the whole network also halves the number of frames, a group spans two frames, and the one before the first is
    empty.
    """

    def __init__(self, shortcut: Any) -> None:
        super().__init__()
        self.side, self.frames = shortcut.factor_s, shortcut.factor_t
        self.channels, self.group = shortcut.out_channels, shortcut.group_size

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(x, self.side)
        if self.frames > 1:
            x = torch.unflatten(x, 1, (-1, self.side**2))
            x = F.pad(x, (0, 0, 0, 0, (self.frames - 1) * self.side**2, 0)).flatten(1, 2)
        return torch.unflatten(x, 1, (self.channels, self.group)).mean(2)


class RepeatUp(nn.Module):
    """Each channel repeated at ``side`` x ``side`` places, in one or more channels: (B, C, H, W) -> (B, D, H*side,
    W*side).
    """

    order: Tensor

    def __init__(self, shortcut: Any) -> None:
        super().__init__()
        self.side = shortcut.factor_s
        # Repeated channels are ordered as (channel, frame, row, column). The first frame is the last of its group.
        places = torch.arange(shortcut.out_channels * shortcut.factor) // shortcut.repeats
        order = places.reshape(shortcut.out_channels, shortcut.factor_t, -1)[:, -1].flatten()
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(torch.index_select(x, 1, self.order), self.side)


class Shortcut(nn.Module):
    """A block's layers, beside a shortcut around all of them."""

    def __init__(self, layers: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.layers, self.shortcut = layers, shortcut

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x) + self.shortcut(x)
        return result


def flat(module: Any) -> nn.Module:
    """A layer of one of the classes as it acts on the first frame: (B, C, H, W) -> (B, D, h, w)."""
    # By name, because each class has copies of these layers, with prefixes of its own.
    match PREFIX.sub("", type(module).__name__):
        case "CausalConv3d":
            left, _, top, *_ = module._padding
            return frame_convolution(module, LAST, (top, left))
        case "RMS_norm":
            return Norm(module)
        case "ResidualBlock":
            return Residual(module)
        case "AttentionBlock":
            return Attention(module)
        case "Resample":
            # Its convolution over time is for later frames.
            return _sequence(*module.resample)
        case "Upsample":
            return NearestDouble()
        case "MidBlock":
            pairs = zip(module.attentions, module.resnets[1:], strict=True)
            return _sequence(module.resnets[0], *(layer for pair in pairs for layer in pair))
        case "UpBlock":
            return _sequence(*module.resnets, *(module.upsamplers or ()))
        case "ResidualDownBlock":
            return Shortcut(_sequence(*module.resnets, module.downsampler), MeanDown(module.avg_shortcut))
        case "ResidualUpBlock":
            layers = _sequence(*module.resnets, module.upsampler)
            return layers if module.avg_shortcut is None else Shortcut(layers, RepeatUp(module.avg_shortcut))
        case _:
            plain: nn.Module = module
            return plain


def _sequence(*layers: nn.Module | None) -> nn.Sequential:
    return nn.Sequential(*(flat(layer) for layer in layers if layer is not None))


def _patched(convolution: nn.Module, patch: int, dim: int) -> nn.Module:
    """``convolution`` with the channels of patches along ``dim`` in PyTorch's order (channel, row, column).

    diffusers' own order is (channel, column, row).
    """
    for tensor in convolution.parameters():
        if tensor.dim() > dim:
            split = torch.unflatten(tensor.detach(), dim, (-1, patch, patch))
            tensor.data = split.transpose(dim + 1, dim + 2).flatten(dim, dim + 2).contiguous()
    return convolution
