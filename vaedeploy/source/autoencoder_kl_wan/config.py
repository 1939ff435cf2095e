"""The configs of diffusers' ``AutoencoderKLWan``, ``AutoencoderKLQwenImage`` and ``AutoencoderKLQwenImage21``."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from vaedeploy.source import family
from vaedeploy.source.family import Channels, Layers

Multiples = Annotated[tuple[Channels, ...], msgspec.Meta(min_length=1, max_length=16)]

Scales = Annotated[tuple[float, ...], msgspec.Meta(max_length=16)]

Flags = Annotated[tuple[bool, ...], msgspec.Meta(max_length=16)]

Patch = Annotated[int, msgspec.Meta(ge=1, le=16)]


class Wan(family.Architecture, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``AutoencoderKLWan``, without its latent contract."""

    class_name: ClassVar[str] = "AutoencoderKLWan"
    ignored: ClassVar[frozenset[str]] = frozenset({"dropout", "scale_factor_temporal", "scale_factor_spatial"})

    base_dim: Channels = 96
    decoder_base_dim: Channels | None = None
    z_dim: Channels = 16
    dim_mult: Multiples = (1, 2, 4, 4)
    num_res_blocks: Layers = 2
    attn_scales: Scales = ()
    temperal_downsample: Flags = (False, True, True)
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: Patch | None = None

    @property
    def wan(self) -> Wan:
        """Itself: ``QwenImage`` has another."""
        return self

    @property
    def factor(self) -> int:
        """Image pixels per latent element along each side. Every block but the last halves the sides of patches."""
        return (self.patch_size or 1) << (len(self.dim_mult) - 1)


class QwenImage(family.Architecture, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``AutoencoderKLQwenImage``, without its latent contract."""

    class_name: ClassVar[str] = "AutoencoderKLQwenImage"
    ignored: ClassVar[frozenset[str]] = frozenset({"dropout"})

    base_dim: Channels = 96
    z_dim: Channels = 16
    dim_mult: Multiples = (1, 2, 4, 4)
    num_res_blocks: Layers = 2
    attn_scales: Scales = ()
    temperal_downsample: Flags = (False, True, True)
    input_channels: int = 3

    @property
    def wan(self) -> Wan:
        """The same network as an ``AutoencoderKLWan``: names, shapes and all that is computed are alike."""
        return Wan(
            base_dim=self.base_dim,
            z_dim=self.z_dim,
            dim_mult=self.dim_mult,
            num_res_blocks=self.num_res_blocks,
            attn_scales=self.attn_scales,
            temperal_downsample=self.temperal_downsample,
            in_channels=self.input_channels,
            out_channels=self.input_channels,
        )


class QwenImage21(Wan, frozen=True, forbid_unknown_fields=True):
    """The config of a diffusers ``AutoencoderKLQwenImage21``: that of Wan's class with other defaults."""

    class_name: ClassVar[str] = "AutoencoderKLQwenImage21"

    decoder_base_dim: Channels | None = 144
    z_dim: Channels = 64
    dim_mult: Multiples = (1, 2, 4, 8, 8)
    temperal_downsample: Flags = (False, True, True, True)
    is_residual: bool = True
    in_channels: int = 4
    out_channels: int = 4
