"""The sizes that an engine takes: ranges of batch items, and of image height and width in pixels."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

Range = tuple[int, int, int]
"""(min, opt, max) of one dimension: the smallest value, the value that TensorRT tunes for, and the largest value."""

Corner = Literal["min", "opt", "max"]
"""Which of the three values of every range in a ``ShapeSet`` is meant."""

CORNERS: tuple[Corner, ...] = ("min", "opt", "max")


def size_text(batch: int, height: int, width: int) -> str:
    """Batch, height and width in the notation of all messages and tables: ``1x512x768``."""
    return f"{batch}x{height}x{width}"


class ShapeSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One optimisation profile of an engine: batch items, and height and width of the image in pixels.

    Each field is (min, opt, max), or one number for all three, which is stored as three. Both parts of a VAE have the
    same shape set: a decoder's sizes are those of its image, which is larger than its latent by the spatial factor.

    Raises ValueError unless 1 <= min <= opt <= max < 2**31. When a document is decoded, msgspec adds the place in it to
    the message.
    """

    height: int | Range
    width: int | Range
    batch: int | Range = 1

    def __post_init__(self) -> None:
        for name in ("batch", "height", "width"):
            value = getattr(self, name)
            least, best, most = numbers = (value,) * 3 if isinstance(value, int) else value
            if not 1 <= least <= best <= most < 2**31:
                raise ValueError(
                    f"{name} is {list(numbers)}; it must be [min, opt, max] with 1 <= min <= opt <= max < 2**31"
                )
            msgspec.structs.force_setattr(self, name, numbers)

    def at(self, corner: Corner) -> tuple[int, int, int]:
        """(batch, height, width): the lower end of every range, the upper end, or the value that is tuned for."""
        index = CORNERS.index(corner)
        return tuple(value[index] for value in (self.batch, self.height, self.width))  # type: ignore[index,return-value]

    def holds(self, batch: int, height: int, width: int) -> bool:
        """Whether ``batch`` images of ``height`` x ``width`` pixels are within the ranges."""
        ranges = zip((batch, height, width), self.at("min"), self.at("max"), strict=True)
        return all(least <= value <= most for value, least, most in ranges)

    def of_factor(self, factor: int) -> ShapeSet | None:
        """The same for a VAE of this spatial factor, which takes multiples of it; None where the ranges hold none.

        >>> ShapeSet(height=(64, 768, 1280), width=(64, 1344, 2048)).of_factor(128)
        ShapeSet(height=(128, 768, 1280), width=(128, 1280, 2048), batch=(1, 1, 1))
        """
        narrowed = []
        for least, best, most in zip(*(self.at(corner)[1:] for corner in CORNERS), strict=True):
            least, best, most = -(-least // factor) * factor, best // factor * factor, most // factor * factor
            if least > most:
                return None
            narrowed.append((least, max(least, best), most))
        height, width = narrowed
        return ShapeSet(height, width, self.batch)

    @property
    def extent(self) -> int:
        """How many sizes are within the ranges, multiples of the spatial factor or not; 1 if ``static``."""
        return math.prod(most - least + 1 for least, most in zip(self.at("min"), self.at("max"), strict=True))

    @property
    def static(self) -> bool:
        """Whether the ranges allow one size only."""
        return self.at("min") == self.at("max")

    def __str__(self) -> str:
        """Batch, height and width as one size or as ranges: ``1x512x512`` or ``1-4x64-1024x64-1024``."""
        ends = zip(self.at("min"), self.at("max"), strict=True)
        return "x".join(str(least) if least == most else f"{least}-{most}" for least, most in ends)
