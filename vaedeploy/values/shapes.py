"""The sizes that an engine takes: a range of each dimension, in pixels."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

Range = tuple[int, int, int]
"""The least, the one that is tuned for, and the most."""

Corner = Literal["min", "opt", "max"]

CORNERS: tuple[Corner, ...] = ("min", "opt", "max")


def size_text(batch: int, height: int, width: int) -> str:
    """Batch, height and width as they are shown everywhere: ``1x512x768``."""
    return f"{batch}x{height}x{width}"


class ShapeSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One optimisation profile of an engine: items, and pixels of an image's height and width.

    Each is (min, opt, max), or one number for all three, kept as three. Both parts of a VAE have the same: a decoder's
    latent is as large as its image by the spatial factor.

    Raises ValueError, which msgspec tells with the place in the document, where min <= opt <= max does not hold.
    """

    height: int | Range
    width: int | Range
    batch: int | Range = 1

    def __post_init__(self) -> None:
        for name in ("batch", "height", "width"):
            given = getattr(self, name)
            least, best, most = numbers = (given,) * 3 if isinstance(given, int) else given
            if not 1 <= least <= best <= most < 2**31:
                raise ValueError(
                    f"{name} is {list(numbers)}; it must be [min, opt, max] with 1 <= min <= opt <= max < 2**31"
                )
            msgspec.structs.force_setattr(self, name, numbers)

    def at(self, corner: Corner) -> tuple[int, int, int]:
        """(batch, height, width) at one end of the ranges, or at what they are tuned for."""
        index = CORNERS.index(corner)
        return tuple(value[index] for value in (self.batch, self.height, self.width))  # type: ignore[index,return-value]

    def holds(self, batch: int, height: int, width: int) -> bool:
        """Whether that many items of that many pixels are within the ranges."""
        ranges = zip((batch, height, width), self.at("min"), self.at("max"), strict=True)
        return all(least <= given <= most for given, least, most in ranges)

    @property
    def extent(self) -> int:
        """How many sizes are within the ranges, those off the factor too: 1 where there is one only."""
        return math.prod(most - least + 1 for least, most in zip(self.at("min"), self.at("max"), strict=True))

    @property
    def static(self) -> bool:
        """Whether there is one size only."""
        return self.at("min") == self.at("max")

    def __str__(self) -> str:
        """Such as ``1x512x512``, or ``1-4x64-1024x64-1024``: batch, height, width."""
        ends = zip(self.at("min"), self.at("max"), strict=True)
        return "x".join(str(least) if least == most else f"{least}-{most}" for least, most in ends)
