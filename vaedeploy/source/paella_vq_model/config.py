"""The config of diffusers' ``PaellaVQModel``."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from vaedeploy.source import family
from vaedeploy.source.family import Channels, Layers


class Architecture(family.Architecture, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``PaellaVQModel``, without its latent contract."""

    class_name: ClassVar[str] = "PaellaVQModel"
    ignored: ClassVar[frozenset[str]] = frozenset({"scale_factor"})

    in_channels: int = 3
    out_channels: int = 3
    up_down_scale_factor: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    levels: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    bottleneck_blocks: Layers = 12
    embed_dim: Channels = 384
    latent_channels: Channels = 4
    num_vq_embeddings: Channels = 8192
