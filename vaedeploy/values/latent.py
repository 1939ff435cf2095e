"""The latent contract, which a VAE and a diffusion model agree on, and the image sizes that it allows."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import msgspec

from vaedeploy.errors import ContractError, SizeError
from vaedeploy.values.words import counted

RGB, RGBA = 3, 4
"""The channels of an image without and with opacity."""

COLORS = {RGB: "RGB", RGBA: "RGBA"}
"""Channels of an image -> what they are."""


class LatentSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The latent contract of a VAE, and what its images have.

    The diffusion model sees ``(z - shift) * scale``, where ``z`` is what the VAE itself computes.

    channels: channels of a latent.
    factor: pixels along a side of an image per element along the same side of its latent.
    scale, shift: one number for all channels, or one number per channel (any sequence of numbers; stored as a tuple of
        floats).
    sampled: whether the encoder gives a distribution (a mean and a standard deviation) instead of one latent.
    image_channels: channels of the images that the encoder takes and the decoder gives: 3 for RGB, or 4 for RGBA, whose
        fourth is opacity (0 to 255, or -1 to 1 as floats); colours are not premultiplied.

    Raises ContractError if ``channels`` or ``factor`` is not a whole number or is below 1, if a scale is 0 or not
    finite, if a shift is not finite, if a scale or shift is not a number, if a sequence does not have ``channels``
    numbers, and if ``image_channels`` is neither 3 nor 4.
    """

    channels: int
    factor: int
    scale: float | tuple[float, ...]
    # A default from a factory is always written. So only image_channels is left out, where it is 3: bundles, latent
    # files and identities of RGB VAEs stay as they were before it existed, and older readers take them.
    shift: float | tuple[float, ...] = msgspec.field(default_factory=lambda: 0.0)
    sampled: bool = msgspec.field(default_factory=lambda: True)
    image_channels: int = RGB

    def differences(self, other: LatentSpec) -> list[tuple[str, Any, Any]]:
        """(field, value in this contract, value in ``other``) for each field that differs."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.__struct_fields__)
        return [(name, here, there) for name, here, there in pairs if here != there]

    def __post_init__(self) -> None:
        for name in ("channels", "factor"):
            count = getattr(self, name)
            if not isinstance(count, int):
                raise ContractError(f"latent {name} is {count!r}; it must be a whole number")
            if count < 1:
                raise ContractError(f"latent {name} is {count}; it must be 1 or more")
        for name in ("scale", "shift"):
            # 1 and 1.0 state the same contract, and must give the same ``Reference.identity``.
            value = as_numbers(name, getattr(self, name))
            msgspec.structs.force_setattr(self, name, value)
            numbers = value if isinstance(value, tuple) else (value,)
            if isinstance(value, tuple) and len(value) != self.channels:
                raise ContractError(
                    f"latent {name} has {counted(len(value), 'number')} for {counted(self.channels, 'channel')}; it "
                    "must be one number, or one for each channel"
                )
            if not all(math.isfinite(n) for n in numbers):
                raise ContractError(f"latent {name} is {value}; it must be finite")
            if name == "scale" and 0.0 in numbers:
                raise ContractError("latent scale is 0; dividing by it is impossible")
        if type(self.image_channels) is not int or self.image_channels not in COLORS:
            raise ContractError(f"image_channels is {self.image_channels!r}; it must be 3 (RGB) or 4 (RGBA)")

    @property
    def sizes(self) -> SizeRule:
        """The rule that the height and width of an image must follow."""
        return SizeRule(self.factor)

    @property
    def colors(self) -> str:
        """The kind of its images: "RGB" or "RGBA"."""
        return COLORS[self.image_channels]


def numbers_text(value: float | tuple[float, ...]) -> str:
    """A scale or shift as the command line takes it: ``0.5``, or ``0.5,0.25`` for one number per channel."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def frames_text(shape: Sequence[int]) -> str:
    """What a message adds about a latent of a video, (B, C, frames, h, w); nothing for another number of axes."""
    if len(shape) != 5:
        return ""
    if shape[2] == 1:
        return ". It has an axis for one frame, as those of Wan and Qwen-Image do: give latent[:, :, 0]"
    return (
        f". It has an axis for {shape[2]} frames, and a bundle decodes images: give the first frame, latent[:, :, 0], "
        "or decode the video with diffusers"
    )


def as_numbers(name: str, value: Any) -> float | tuple[float, ...]:
    """``value``, a number or a sequence or array of numbers, as a float or a tuple of floats.

    name: "scale" or "shift". Raises ContractError for anything else.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        # Arrays have both attributes, and an array with ndim 0 has __iter__ but cannot be iterated over.
        return tuple(float(n) for n in value) if getattr(value, "ndim", hasattr(value, "__iter__")) else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ContractError(f"latent {name} is {value!r}; it must be one number, or one number per channel") from error


def as_size(given: Any) -> tuple[int, int]:
    """``given`` as a (height, width). Raises SizeError unless it is two whole numbers."""
    try:
        height, width = map(operator.index, given)
    except (TypeError, ValueError) as error:
        raise SizeError(f"size is {given!r}; it must be two whole numbers, (height, width)") from error
    return height, width


class Limits(msgspec.Struct, frozen=True):
    """What a VAE accepts: latents of ``channels`` channels, and images of ``image_channels`` (3 is RGB, 4 is RGBA),
    whose height and width ``sizes`` allows (multiples of ``factor`` pixels).
    """

    channels: int
    factor: int
    sizes: SizeRule
    image_channels: int


class SizeRule(msgspec.Struct, frozen=True):
    """Heights and widths must be multiples of ``factor`` pixels, and at least ``factor``."""

    factor: int

    def allows(self, height: int, width: int) -> bool:
        """Whether (height, width) keeps the rule."""
        return height > 0 and width > 0 and height % self.factor == 0 and width % self.factor == 0

    def check_cut(self, size: Any, full: tuple[int, int]) -> tuple[int, int]:
        """``size`` as the (height, width) to which a decoded image of ``full`` (height, width) pixels is cut.

        Raises SizeError if ``size`` is not two whole numbers, or if padding an image of that size does not give
        ``full``.
        """
        height, width = as_size(size)
        if self.padded(height, width) != full or height < 1 or width < 1:
            smallest = tuple(side - self.factor + 1 for side in full)
            raise SizeError(
                f"size is {height}x{width} (height x width), but this latent decodes to {full[0]}x{full[1]}, which "
                f"comes from heights {smallest[0]} to {full[0]} and widths {smallest[1]} to {full[1]}"
            )
        return height, width

    def check(self, height: int, width: int) -> None:
        """Raise SizeError, which names the nearest valid sizes, if (height, width) breaks the rule."""
        if not self.allows(height, width):
            raise SizeError(
                f"image is {height}x{width} (height x width), but {self.advice(height, width)}. "
                "Pad or crop it first, or ask for padding (--pad, pad=True, or /v1/encode?pad=true of a server)"
            )

    def advice(self, height: int, width: int) -> str:
        """The rule and the valid sizes nearest to (height, width), as words for a message."""
        down = f"{self._down(height)}x{self._down(width)}"
        up = "{}x{}".format(*self.padded(height, width))
        nearest = down if down == up else f"{down} or {up}"
        return f"both must be multiples of {self.factor}; the nearest valid sizes are {nearest}"

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The smallest valid size in which an image of (height, width) fits."""
        return self._up(height), self._up(width)

    def _up(self, pixels: int) -> int:
        return max(1, -(-pixels // self.factor)) * self.factor

    def _down(self, pixels: int) -> int:
        return max(1, pixels // self.factor) * self.factor
