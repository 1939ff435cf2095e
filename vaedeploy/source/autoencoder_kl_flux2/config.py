"""The config of diffusers' ``AutoencoderKLFlux2``."""

from __future__ import annotations

from typing import ClassVar

from vaedeploy.source import family
from vaedeploy.source.family import Blocks, Channels, Layers, Widths
from vaedeploy.source.pack import Packing


class Architecture(family.Architecture, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``AutoencoderKLFlux2``.

    batch_norm_eps: is added to the variance of packed latents before its root divides them. packing: how 2x2 latents
    become channels. No config.json states it; the batch norm's statistics are in that order.
    """

    class_name: ClassVar[str] = "AutoencoderKLFlux2"
    unshaped: ClassVar[frozenset[str]] = frozenset({"sample_size", "batch_norm_eps", "packing"})
    ignored: ClassVar[frozenset[str]] = frozenset({"batch_norm_momentum"})  # only training reads it

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: Blocks = ("DownEncoderBlock2D",) * 4
    up_block_types: Blocks = ("UpDecoderBlock2D",) * 4
    block_out_channels: Widths = (128, 256, 512, 512)
    decoder_block_out_channels: Widths | None = None
    layers_per_block: Layers = 2
    act_fn: str = "silu"
    latent_channels: Channels = 32
    norm_num_groups: Channels = 32
    sample_size: int | tuple[int, ...] = 1024
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    batch_norm_eps: float = 1e-4
    patch_size: tuple[int, int] = (2, 2)
    packing: Packing = "channel, row, column"
