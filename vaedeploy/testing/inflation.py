"""VAEs whose activations leave half precision's range: other weights for the same function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def _scale(layer: Any, weight: float, bias: float) -> None:
    layer.weight.mul_(weight)
    layer.bias.mul_(bias)


def inflate(half: torch.nn.Module, streams: Iterator[float], inner: Iterator[float]) -> None:
    """Scale the activations inside half an AutoencoderKL, in place, by other weights for the same function.

        >>> vae = vd.load_reference("demo")
        >>> inflate(vae.encoder, *map(itertools.cycle, INFLATIONS["2^17 everywhere"]))

    half: the encoder or the decoder of a ``Reference``, whose weights have no gradient.
    streams: a factor for each stretch of the residual stream, which ends at a convolution. inner: for each block, its
    own activations; in attention, queries by it and keys by its inverse, so that scores are as they were.
    """
    body: Any
    (body,) = (m for m in half.children() if hasattr(m, "mid_block"))
    stream = next(streams)
    _scale(body.conv_in, stream, stream)

    def stretch(layer: Any) -> None:
        nonlocal stream
        before, stream = stream, next(streams)
        _scale(layer, stream / before, stream)

    def resnet(block: Any) -> None:
        own = next(inner)
        block.norm1.eps *= stream**2
        _scale(block.conv1, own, own)
        block.norm2.eps *= own**2
        if block.conv_shortcut is not None:
            stretch(block.conv_shortcut)
        _scale(block.conv2, stream, stream)

    def blocks(kind: str) -> None:
        for block in getattr(body, kind, []):
            for each in block.resnets:
                resnet(each)
            for each in getattr(block, kind.replace("_blocks", "samplers"), None) or []:
                stretch(each.conv)

    blocks("down_blocks")
    resnet(body.mid_block.resnets[0])
    attention, own = body.mid_block.attentions[0], next(inner)
    attention.group_norm.eps *= stream**2
    for layer, factor in ((attention.to_q, own), (attention.to_k, 1 / own), (attention.to_v, own)):
        _scale(layer, factor, factor)
    _scale(attention.to_out[0], stream / own, stream)
    resnet(body.mid_block.resnets[1])
    blocks("up_blocks")
    body.conv_norm_out.eps *= stream**2


INFLATIONS = {
    "2^17 everywhere": ([2.0**17], [2.0**9]),
    "not powers of two": ([3e5, 7e3, 1.7e6, 9e4], [1.1e3, 4.7e4, 33.0, 3.3e5, 0.7]),
}
"""Factors for ``inflate``, to be repeated: the stream's, and the blocks'."""
