"""How decoded images look beside PyTorch's: findings for the report, and the images themselves for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.images.cut import Cut
from vaedeploy.images.pixels import to_levels

if TYPE_CHECKING:
    from vaedeploy.quality.candidates import Candidate, Picture, Pixels

SMALLEST = 256
"""The least pixels a side of an image that is looked at: a smaller crop shows too little to tell a fault of the VAE
from a trait of the photograph.
"""


def make_looks(factor: int) -> Looks | None:
    """Looks for a VAE of that factor, or None where scikit-image is not installed: a bundle is verified without it."""
    try:
        import vaedeploy.quality  # noqa: F401
    except ImportError:
        return None
    return Looks(factor)


def label_of(form: str) -> str:
    """What the images of a form are called. form: as ``Case`` has it."""
    return f"{form} graph" if form else "graph"


class Looks:
    """Judges decoded images and keeps them. factor: pixels of an image's side per element of its latent's side."""

    def __init__(self, factor: int) -> None:
        self._factor = factor
        self._references: dict[str, Pixels] = {}
        self._cuts: dict[str, Cut | None] = {}
        self._candidates: dict[str, list[Candidate]] = {}

    def see(
        self,
        form: str,
        name: str,
        reference: NDArray[np.float32],
        image: NDArray[Any],
        full: Sequence[tuple[int, int]] = (),
    ) -> tuple[str, ...] | None:
        """The faults that ``image`` shows beside ``reference``, a sentence each; None where it is too small to tell.

        form: the form of the graph that made the image. name: the case's. reference, image: (B, N, H, W) float, around
        [-1, 1].
        full: (height, width) of the photograph whose middle each item is, where known.
        """
        from vaedeploy.quality import find_faults, measure_quality
        from vaedeploy.quality.candidates import Candidate

        if min(image.shape[2:]) < SMALLEST:
            return None
        seen: list[str] = []
        for number, (expected, found) in enumerate(zip(to_levels(reference), image, strict=True), 1):
            quality = measure_quality(expected, found, factor=self._factor)
            findings = find_faults(quality)
            item = name if len(image) == 1 else f"{name} {number}"
            self._references[item] = expected
            self._cuts[item] = _cut(item, expected, full[number - 1] if full else None)
            levels = to_levels(found[None].astype(np.float32))[0]
            self._candidates.setdefault(item, []).append(Candidate(label_of(form), levels, quality, findings))
            seen += [finding.words for finding in findings]
        return tuple(dict.fromkeys(seen))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Everything that was looked at: PyTorch's image and, beside it, what each form made."""
        from vaedeploy.quality.candidates import Picture

        return tuple(
            Picture(name, self._references[name], tuple(made), self._cuts[name])
            for name, made in self._candidates.items()
        )


def _cut(name: str, pixels: Pixels, full: tuple[int, int] | None) -> Cut | None:
    """The part of a photograph that ``pixels`` are; None if they are all of it, or it was enlarged or is unknown."""
    height, width = pixels.shape[:2]
    if full is None or full == (height, width) or full[0] < height or full[1] < width:
        return None
    return Cut(name, height, width, *full)
