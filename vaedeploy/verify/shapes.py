"""The shapes at which a VAE is verified."""

from __future__ import annotations

from dataclasses import dataclass

from vaedeploy.values.trials import MOST_LATENTS, trial_latents


@dataclass(frozen=True)
class Shape:
    """One of the shapes: a batch of photographs of ``height`` x ``width`` pixels.

    round_trip: whether an image of this shape is also encoded and then decoded.
    """

    name: str
    batch: int
    height: int
    width: int
    round_trip: bool


LARGE = 512
"""Height and width of the large case in pixels."""


def verification_shapes(factor: int) -> tuple[Shape, ...]:
    """The shapes at which every VAE of this spatial ``factor`` is verified.

    Small shapes find faults that depend on the shape; ``trial_latents`` says how small. The 512x512 shape finds errors
    that grow with the area, such as rounding in normalisation; it takes most of the time (five sixths at factor 8) and
    has no round trip. A factor below 4 makes it smaller, see ``MOST_LATENTS``.
    """
    short, long = (trial_latents(latents, factor) for latents in (8, 12))
    odd = (short + 1) | 1 if short > 1 else 1
    rows = (
        ("smallest", 1, short, short),
        ("square", 1, long, long),
        ("landscape", 2, short, long),
        ("portrait", 1, long, short),
        ("odd", 3, odd, odd + 2),
    )
    small = tuple(Shape(name, batch, h * factor, w * factor, True) for name, batch, h, w in rows)
    side = min(MOST_LATENTS, -(-LARGE // factor)) * factor
    return (*small, Shape("large", 1, side, side, False))
