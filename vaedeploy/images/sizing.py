"""Pictures brought to the sizes at which diffusion models are trained.

A ``Sizing`` says to which: aspect buckets of one area, one size, or each picture's own. A ``Fit`` is what is done with
one picture: it is resized by Lanczos to cover the size, and cropped where it is too long. Sizes are (H, W) in pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vaedeploy.errors import InputError
from vaedeploy.values.latent import SizeRule, as_size

Size = tuple[int, int]

Crop = Literal["center", "corner", "random"]
"""Where a picture is cropped: equally at both ends, at its bottom and right, or at a place that seed and key choose."""


class Fit(msgspec.Struct, frozen=True):
    """What is done with a picture, in this order; all are (height, width) or (top, left) in pixels.

    original: its size, upright. resized: the size to which it is resized. crop: the place of the piece that is cut out
    of that. size: that of the piece, which is encoded.
    """

    original: Size
    resized: Size
    crop: Size
    size: Size


def bucket_table(side: int, step: int) -> list[Size]:
    """Sizes of at most side x side pixels whose sides are multiples of ``step``, from 1:4 to 4:1; sorted by width.

    It is the table that kohya's sd-scripts makes for the resolution ``side``, ``min_bucket_reso`` side / 2,
    ``max_bucket_reso`` side * 2 and ``bucket_reso_steps`` step.
    """
    square = side // step * step
    low, high = -(-side // 2 // step) * step, 2 * side // step * step
    low = max(low, step)
    table = {(square, square)}
    for width in range(low, high + 1, step):
        height = min(side * side // width // step * step, high)
        if height >= low:
            table |= {(height, width), (width, height)}
    return sorted(table, key=lambda size: (size[1], size[0]))


@dataclass(frozen=True)
class Sizing:
    """How pictures are brought to size.

    buckets: the side, in pixels, of the square whose area no size exceeds, see ``bucket_table``. size: one for all. If
    both are None, pictures keep their sizes. step: that of the sizes of ``buckets``, in pixels. crop: where to crop.
    seed: for random crops.

    Raises InputError for sizes that ``rule`` does not allow.
    """

    rule: SizeRule
    buckets: int | None = None
    size: Size | None = None
    step: int | None = None
    crop: Crop = "center"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.buckets is not None and self.size is not None:
            raise InputError("buckets and size are both given; a cache has one or the other")
        if self.crop not in get_args(Crop):
            raise InputError(f"crop is {self.crop!r}; it must be one of {', '.join(get_args(Crop))}")
        if self.step is not None and (self.step < 1 or self.step % self.rule.factor):
            raise InputError(f"the step of buckets is {self.step}; it must be a multiple of {self.rule.factor}")
        if self.size is not None:
            height, width = as_size(self.size)
            if not self.rule.allows(height, width):
                raise InputError(f"size is {height}x{width}, but {self.rule.advice(height, width)}")
        if self.buckets is not None and not (
            isinstance(self.buckets, int) and self.step_of_buckets <= self.buckets <= 2**14
        ):
            raise InputError(
                f"buckets is {self.buckets!r}; it must be the side of a square in pixels, from {self.step_of_buckets} "
                f"to {2**14}"
            )

    @property
    def step_of_buckets(self) -> int:
        """The step, which is the VAE's factor unless another is given."""
        return self.step or self.rule.factor

    @cached_property
    def table(self) -> list[Size] | None:
        """All sizes to which pictures are brought; None if they keep theirs."""
        if self.buckets is not None:
            return bucket_table(self.buckets, self.step_of_buckets)
        return None if self.size is None else [self.size]

    @cached_property
    def _ratios(self) -> NDArray[np.float64]:
        return np.array([width / height for height, width in self.table or []])

    def fit(self, key: str, original: Size) -> Fit:
        """What is done with the picture ``key``, whose size is ``original``.

        From the table it gets its own size, or the one with the most similar ratio of width to height.
        """
        if self.table is None:
            return Fit(original, original, (0, 0), original)
        height, width = original
        size = original
        if original not in self.table:
            size = self.table[int(np.abs(self._ratios - width / height).argmin())]
        # Comparing products keeps whole numbers: a side that fits exactly must not be rounded.
        if width * size[0] > size[1] * height:
            resized = (size[0], max(size[1], int(width * (size[0] / height) + 0.5)))
        else:
            resized = (max(size[0], int(height * (size[1] / width) + 0.5)), size[1])
        spare = (resized[0] - size[0], resized[1] - size[1])
        return Fit(original, resized, self._place(key, spare), size)

    def _place(self, key: str, spare: Size) -> Size:
        """The (top, left) of the piece in a picture that is larger by ``spare``."""
        if self.crop == "center":
            return spare[0] // 2, spare[1] // 2
        if self.crop == "corner":
            return 0, 0
        digest = hashlib.sha256(f"{self.seed}:{key}".encode()).digest()
        top, left = (int.from_bytes(part, "little") for part in (digest[:8], digest[8:16]))
        return top % (spare[0] + 1), left % (spare[1] + 1)

    def shard_size(self, fit: Fit) -> Size:
        """The size of the padded picture, by which it is put into a shard."""
        return self.rule.padded(*fit.size)


def fitted(pixels: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
    """A picture (H, W, N) uint8 brought to ``fit.size``.

    Only the kept piece is resized, so that a picture of 1 x 100,000 pixels takes no more memory than another. Colours
    are weighted by opacity, if any, so that transparent pixels do not bleed into others.
    """
    if fit.resized == fit.original == fit.size:
        return pixels
    down, across = (old / new for old, new in zip(fit.original, fit.resized, strict=True))
    top, left = fit.crop[0] * down, fit.crop[1] * across
    box = (left, top, left + fit.size[1] * across, top + fit.size[0] * down)
    box = (box[0], box[1], min(box[2], pixels.shape[1]), min(box[3], pixels.shape[0]))
    image = Image.fromarray(pixels).resize((fit.size[1], fit.size[0]), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image)
