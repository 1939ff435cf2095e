"""What a VAE and a diffusion model agree on: the latent contract and the sizes that it allows."""

from __future__ import annotations

import math
import operator
from typing import Any

import msgspec

from vaedeploy.errors import ContractError, SizeError


class LatentSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The latent contract of a VAE.

    The diffusion model sees ``(z - shift) * scale``, where ``z`` is what the VAE itself computes.

    channels: channels of a latent.
    factor: pixels of an image's side per element of its latent's side.
    scale, shift: one number, or one a channel (any sequence of numbers; kept as a tuple of floats).
    sampled: the encoder gives a distribution (a mean and a standard deviation), not just a latent.

    Raises ContractError for counts that are not whole or below 1, a scale that is 0 or not finite, a shift that is not
    finite, what is not a number, and vectors whose length is not ``channels``.
    """

    channels: int
    factor: int
    scale: float | tuple[float, ...]
    shift: float | tuple[float, ...] = 0.0
    sampled: bool = True

    def differences(self, other: LatentSpec) -> list[tuple[str, Any, Any]]:
        """(field, its value here, the one of ``other``) for each field that differs."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.__struct_fields__)
        return [(name, own, others) for name, own, others in pairs if own != others]

    def __post_init__(self) -> None:
        for name in ("channels", "factor"):
            count = getattr(self, name)
            if not isinstance(count, int):
                raise ContractError(f"latent {name} is {count!r}; it must be a whole number")
            if count < 1:
                raise ContractError(f"latent {name} is {count}; it must be 1 or more")
        for name in ("scale", "shift"):
            # 1 and 1.0 are one contract, and must give one identity.
            value = _floats(name, getattr(self, name))
            msgspec.structs.force_setattr(self, name, value)
            numbers = value if isinstance(value, tuple) else (value,)
            if isinstance(value, tuple) and len(value) != self.channels:
                raise ContractError(f"latent {name} has {len(value)} numbers for {self.channels} channels")
            if not all(math.isfinite(n) for n in numbers):
                raise ContractError(f"latent {name} is {value}; it must be finite")
            if name == "scale" and 0.0 in numbers:
                raise ContractError("latent scale is 0; dividing by it is impossible")

    @property
    def sizes(self) -> SizeRule:
        """The rule that image heights and widths follow."""
        return SizeRule(self.factor)


def _floats(name: str, value: Any) -> float | tuple[float, ...]:
    """A number, or a sequence or array of them, as floats."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        # Arrays have both, and those without a dimension cannot be gone through.
        return tuple(float(n) for n in value) if getattr(value, "ndim", hasattr(value, "__iter__")) else float(value)
    except (TypeError, ValueError) as error:
        raise ContractError(f"latent {name} is {value!r}; it must be a number, or one a channel") from error


class SizeRule(msgspec.Struct, frozen=True):
    """Heights and widths must be multiples of ``factor`` pixels, and at least ``factor``."""

    factor: int

    def allows(self, height: int, width: int) -> bool:
        return height > 0 and width > 0 and height % self.factor == 0 and width % self.factor == 0

    def check_cut(self, size: Any, full: tuple[int, int]) -> tuple[int, int]:
        """(height, width) to cut a decoded image to, which has ``full`` pixels. Raises SizeError where it cannot have
        been padded to that.
        """
        try:
            height, width = map(operator.index, size)
        except (TypeError, ValueError) as error:
            raise SizeError(f"size is {size!r}; it must be two whole numbers, (height, width)") from error
        if self.padded(height, width) != full or height < 1 or width < 1:
            low = tuple(side - self.factor + 1 for side in full)
            raise SizeError(
                f"size is {height}x{width} (height x width), but this latent decodes to {full[0]}x{full[1]}, which "
                f"comes from heights {low[0]} to {full[0]} and widths {low[1]} to {full[1]}"
            )
        return height, width

    def check(self, height: int, width: int) -> None:
        """Raise SizeError, naming the nearest valid sizes, where (height, width) breaks the rule."""
        if not self.allows(height, width):
            raise SizeError(
                f"image is {height}x{width} (height x width), but {self.advice(height, width)}. "
                "Pad or crop it first, or ask for padding (--pad, pad=True)"
            )

    def advice(self, height: int, width: int) -> str:
        """The rule, and the sizes nearest to (height, width) that keep it."""
        down = f"{self._down(height)}x{self._down(width)}"
        up = "{}x{}".format(*self.padded(height, width))
        nearest = down if down == up else f"{down} or {up}"
        return f"both must be multiples of {self.factor}; the nearest valid sizes are {nearest}"

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The smallest valid (height, width) that holds the given one."""
        return self._up(height), self._up(width)

    def _up(self, pixels: int) -> int:
        return max(1, -(-pixels // self.factor)) * self.factor

    def _down(self, pixels: int) -> int:
        return max(1, pixels // self.factor) * self.factor
