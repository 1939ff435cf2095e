"""The first frame of a video VAE, which is an image: on it alone, 3-D convolutions are 2-D ones.

A convolution over frames multiplies the frame with one slice of its kernel, and the zeros around it with the others. A
causal convolution, with zeros only before the frame, uses the last slice; one with equal padding uses the middle slice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def frame_convolution(convolution: nn.Conv3d | nn.Conv2d, index: int, padding: tuple[int, int]) -> nn.Conv2d:
    """The convolution (B, C, H, W) -> (B, D, h, w) that ``convolution`` is on one frame.

    convolution: 3-D, or 2-D with an axis for one frame added by its class. index: the slice of a 3-D kernel that meets
    the frame. padding: zeros in height and width, which causal convolutions do not keep in ``convolution.padding``.
    """
    weight = convolution.weight.detach()
    if weight.ndim == 5:
        weight = weight[:, :, index].contiguous()
    tensors = {"weight": weight}
    if convolution.bias is not None:
        tensors["bias"] = convolution.bias.detach()
    # Initial values are not needed, and drawing them would advance the process's random state.
    with torch.device("meta"):
        flat = nn.Conv2d(
            convolution.in_channels,
            convolution.out_channels,
            (weight.shape[2], weight.shape[3]),
            stride=(convolution.stride[-2], convolution.stride[-1]),
            padding=padding,
            dilation=(convolution.dilation[-2], convolution.dilation[-1]),
            groups=convolution.groups,
            bias=convolution.bias is not None,
        )
    flat.load_state_dict(tensors, strict=True, assign=True)
    return flat


class NearestDouble(nn.Module):
    """x (B, C, H, W) -> (B, C, 2H, 2W), each pixel four times.

    At exactly x2, diffusers' "nearest-exact" is the same function, but PyTorch's exporter writes it as three nodes
    instead of one Resize (torch 2.13.0), and no rewrite rule knows those.
    """

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
