"""The config of diffusers' ``VQModel``."""

from __future__ import annotations

from typing import ClassVar

from vaedeploy.source import family
from vaedeploy.source.family import Blocks, Channels, Layers, Widths


class Architecture(family.Architecture, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``VQModel``."""

    class_name: ClassVar[str] = "VQModel"
    unshaped: ClassVar[frozenset[str]] = frozenset({"sample_size"})

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: Blocks = ("DownEncoderBlock2D",)
    up_block_types: Blocks = ("UpDecoderBlock2D",)
    block_out_channels: Widths = (64,)
    layers_per_block: Layers = 1
    act_fn: str = "silu"
    latent_channels: Channels = 3
    sample_size: int | tuple[int, ...] = 32
    num_vq_embeddings: Channels = 256
    norm_num_groups: Channels = 32
    vq_embed_dim: Channels | None = None
    norm_type: str = "group"
    mid_block_add_attention: bool = True
    lookup_from_codebook: bool = False
