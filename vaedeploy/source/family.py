"""A family of VAEs: one class of diffusers' autoencoders, as the rest of ``source`` sees it.

``docs/architecture.md`` says how to add one. ``families`` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, TypeVar

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source.statement import Statement, config_statement
from vaedeploy.values.latent import COLORS, RGB
from vaedeploy.values.words import counted

if TYPE_CHECKING:
    from torch import Tensor, nn

Channels = Annotated[int, msgspec.Meta(ge=1, le=65536)]

Layers = Annotated[int, msgspec.Meta(ge=1, le=64)]
"""A bound far above everything published: building what a damaged config asks for could take for ever."""

Widths = Annotated[tuple[Channels, ...], msgspec.Meta(min_length=1, max_length=16)]
"""Channels, a number for each block."""

Counts = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=64)], ...], msgspec.Meta(min_length=1, max_length=16)]
"""Layers, a number for each block."""

Blocks = Annotated[tuple[str, ...], msgspec.Meta(max_length=16)]
"""The kind of each block."""

DESCRIBES = frozenset({"scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"})
"""Fields of a config.json that describe latents or advise on a precision, and change nothing in a network."""

OWN_MODULES = (
    "Any VAE can be given as two modules of your own: vaedeploy.Reference(encoder=..., decoder=..., "
    "latent=vaedeploy.LatentSpec(...)), in Python"
)


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network, as a ``config.json`` describes it, without its latent contract. Frozen, so it can be compared.

    A family's subclass has a field for each argument of the diffusers class, with diffusers' default for a
    ``config.json`` that leaves it out.

    class_name: the class of diffusers. unshaped: fields on which no tensor's shape depends, and in which a preset may
    differ from a ``config.json``. ignored: arguments of the class that change nothing here, such as those that only
    tiling or training reads. Fields of the latent contract (``DESCRIBES``) are in neither.
    """

    class_name: ClassVar[str]
    unshaped: ClassVar[frozenset[str]] = frozenset()
    ignored: ClassVar[frozenset[str]] = frozenset()

    def differences(self, other: Architecture) -> list[str]:
        """Names of the fields in which ``other`` is a different network; ``class_name`` alone for another class."""
        if self.class_name != other.class_name:
            return ["class_name"]
        names = (name for name in self.__struct_fields__ if name not in self.unshaped)
        return [name for name in names if getattr(self, name) != getattr(other, name)]


A = TypeVar("A", bound=Architecture)


@dataclass(frozen=True)
class LatentShape:
    """The part of a latent contract that an architecture states.

    channels, factor: those of latents as the diffusion model sees them, after any packing. sampled: whether the encoder
    gives a mean and a deviation. image_channels: 3 for RGB, 4 for RGBA.
    """

    channels: int
    factor: int
    sampled: bool = True
    image_channels: int = RGB


class Family(Protocol[A]):
    """What a class of diffusers' autoencoders has of its own.

    A family subclasses this, and imports PyTorch and diffusers inside of ``blank`` and ``halves`` alone.

    class_name: as ``_class_name`` of a ``config.json`` says it.
    contract_tensors: names of tensors that only state the latent contract. A file may lack them: ``statement`` then
    says what is missing.
    """

    class_name: str
    contract_tensors: frozenset[str] = frozenset()

    def read(self, raw: Mapping[str, Any]) -> A:
        """The architecture that a ``config.json`` describes.

        Raises msgspec.ValidationError for fields of a wrong type, as ``read_fields`` does, and WeightsError for what
        cannot be done. Its message continues after the path of the config: "has 4 channels in; ...".
        """
        ...

    def latent(self, architecture: A) -> LatentShape:
        """Channels and factor of its latents as the diffusion model sees them."""
        ...

    def statement(self, raw: Mapping[str, Any], architecture: A, tensors: Mapping[str, Tensor], by: str) -> Statement:
        """What the config, the weights or the class states about scale and shift.

        raw: the ``config.json``; empty for weights that came without one. tensors: the ``contract_tensors`` that the
        weights have, float32, by diffusers' names. by: what messages call the source. By default, the config's usual
        diffusers fields count; where it has none, the user is asked for the scale.
        """
        return config_statement(raw, by)

    def blank(self, architecture: A) -> nn.Module:
        """An instance of the diffusers class, made with the meta device as default: tensors have shapes and no data."""
        ...

    def halves(self, module: Any, architecture: A) -> tuple[nn.Module, nn.Module]:
        """(encoder, decoder) of a ``blank`` that has been given weights, each with only its own half's tensors.

        encoder: image (B, N, H, W) in [-1, 1] -> latent, or (mean, std), in (B, C, h, w) before scale and shift.
        decoder: latent -> image, not clamped. Names of tensors begin with ``encoder`` or ``quant_conv``, and with
        ``decoder`` or ``post_quant_conv``.
        """
        ...

    def diffusers_name(self, name: str, architecture: A) -> str | tuple[str, ...]:
        """Diffusers' name of the tensor that a file of the original code, or an old one, calls ``name``.

        Several names stand for tensors that the file has joined: equal parts of its first axis, in this order.
        """
        return name


def read_fields(raw: Mapping[str, Any], architecture: type[A]) -> A:
    """``raw`` as an ``architecture``: the fields that it has, and its defaults for those that are missing or null.

    Raises msgspec.ValidationError for a field of a wrong type, and WeightsError for one that is not known and might
    change the network.
    """
    fields = architecture.__struct_fields__
    known = {*fields, *architecture.ignored, *DESCRIBES}
    # diffusers' classes leave an addition out by null or false.
    unknown = sorted(k for k, v in raw.items() if k not in known and k[:1] != "_" and v is not None and v is not False)
    if unknown:
        raise WeightsError(
            f"has fields that this vaedeploy does not know: {', '.join(f'{k} {raw[k]!r}' for k in unknown)}. They may "
            "change what the VAE computes. Take vaedeploy's newest version; or, if they change nothing, remove them "
            f"from a copy of the file. {OWN_MODULES}"
        )
    return msgspec.convert({key: raw[key] for key in fields if raw.get(key) is not None}, architecture)


def check_colors(channels_in: int, channels_out: int, patch: int = 1) -> None:
    """Raise WeightsError, in the words that ``Family.read`` wants, unless a VAE takes and gives RGB or RGBA images.

    patch: pixels along a side of the patches that it takes as one.
    """
    wanted = {channels * patch**2: colors for channels, colors in COLORS.items()}
    if channels_in != channels_out or channels_in not in wanted:
        numbers = " or ".join(f"{channels} ({colors})" for channels, colors in wanted.items())
        patches = f", in patches of {patch}x{patch} pixels" if patch > 1 else ""
        raise WeightsError(
            f"has {counted(channels_in, 'channel')} in and {channels_out} out; both must be {numbers}{patches}. "
            + OWN_MODULES
        )
