"""One frame of the decoder of diffusers' ``AutoencoderKLTemporalDecoder`` as a plain 2-D module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vaedeploy.source.oneframe import frame_convolution

MIDDLE = 1
"""The slice of a kernel over three frames that meets the frame, with zeros on both sides."""


class Residual(nn.Module):
    """A ``SpatioTemporalResBlock`` on one frame: a residual block, then what a second one, over frames, adds."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.spatial, temporal = block.spatial_res_block, block.temporal_res_block
        self.norm1, self.conv1 = temporal.norm1, frame_convolution(temporal.conv1, MIDDLE, (0, 0))
        self.norm2, self.conv2 = temporal.norm2, frame_convolution(temporal.conv2, MIDDLE, (0, 0))
        self.nonlinearity = temporal.nonlinearity
        self.mix_factor = block.time_mixer.mix_factor

    def forward(self, x: Tensor) -> Tensor:
        x = self.spatial(x, None)
        y = self.conv1(self.nonlinearity(self.norm1(x)))
        y = self.conv2(self.nonlinearity(self.norm2(y)))
        # diffusers mixes (1 - a) x + a (x + y), with a = sigmoid(mix_factor).
        result: Tensor = x + torch.sigmoid(self.mix_factor) * y
        return result


def decoder(whole: Any) -> nn.Module:
    """The decoder on videos of one frame: (B, C, h, w) -> image (B, N, h*f, w*f)."""
    layers: list[nn.Module] = [whole.conv_in, Residual(whole.mid_block.resnets[0])]
    for residual, attention in zip(whole.mid_block.resnets[1:], whole.mid_block.attentions, strict=False):
        layers += [attention, Residual(residual)]
    for block in whole.up_blocks:
        layers += [*map(Residual, block.resnets), *(block.upsamplers or ())]
    layers += [whole.conv_norm_out, whole.conv_act, whole.conv_out]
    return nn.Sequential(*layers, frame_convolution(whole.time_conv_out, MIDDLE, (0, 0)))
