"""Whether images show the photographs that they were made from; if not, nothing can be said about their VAE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vaedeploy.images.opacity import as_seen
from vaedeploy.images.photos import Photo
from vaedeploy.quality.candidates import Picture

SHOWN = 3.0
"""dB of PSNR by which images must be ahead of plain pictures of each photograph's mean colour: at 3 dB, they have half
of what varies in the photographs. Images of VAEs with random weights are behind the plain ones.
"""

CLOSE = 20.0
"""dB of PSNR from which images count as showing their photographs in any case: an error of a tenth of the range. A
photograph that is nearly of one colour varies little, and it is hard to be ahead of a plain picture there.
"""


def plain_psnr(photos: Sequence[Photo]) -> float:
    """PSNR in dB, to the photographs, of plain pictures of their mean colours; infinite where each is of one colour.

    photos: (H, W, N) uint8 each.
    """
    seen = (as_seen(photo).astype(np.float64) for photo in photos)
    mean_square = float(np.mean(np.concatenate([((a - a.mean((0, 1))) ** 2).reshape(-1) for a in seen])))
    return 10 * math.log10(255**2 / mean_square) if mean_square else math.inf


def least_psnr(photos: Sequence[Photo]) -> float:
    """PSNR in dB from which images show these photographs."""
    return min(plain_psnr(photos) + SHOWN, CLOSE)


def broken_vaes(pictures: Sequence[Picture]) -> tuple[str, ...]:
    """The VAEs whose own images do not show their photographs in most pictures."""
    hidden: dict[str, int] = {}
    for picture in pictures:
        least = least_psnr([picture.reference])
        for candidate in picture.candidates:
            psnr = candidate.quality.error.psnr  # None where nothing differs
            hidden[candidate.name] = hidden.get(candidate.name, 0) + (psnr is not None and not psnr >= least)
    return tuple(name for name, count in hidden.items() if 2 * count > len(pictures))
