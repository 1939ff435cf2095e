"""The shapes that a VAE is verified at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One of the shapes: a batch of photographs of ``height`` x ``width`` pixels.

    round_trip: whether an image is also encoded and decoded in one go there.
    """

    name: str
    batch: int
    height: int
    width: int
    round_trip: bool


def verification_shapes(factor: int) -> tuple[Shape, ...]:
    """The shapes that every VAE is verified at, for a spatial ``factor``.

    Small shapes find faults that depend on the shape. The one of 512x512 finds errors that grow with the area, such as
    rounding in normalisation; it takes five sixths of the time and is left out of the round trip. A factor below 4
    makes it smaller, because attention over more than 128x128 elements would not fit into memory.
    """
    rows = (
        ("smallest", 1, 8, 8),
        ("square", 1, 12, 12),
        ("landscape", 2, 8, 12),
        ("portrait", 1, 12, 8),
        ("odd", 3, 9, 11),
    )
    small = tuple(Shape(name, batch, h * factor, w * factor, True) for name, batch, h, w in rows)
    side = min(128, -(-512 // factor)) * factor
    return (*small, Shape("large", 1, side, side, False))
