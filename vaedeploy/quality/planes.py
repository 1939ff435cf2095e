"""One image in the forms that metrics read, each computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2gray, rgb2lab
from skimage.transform import downscale_local_mean

FORM = 8
"""Side, in pixels, of the blocks whose means compare colour and contrast: a change of detail alone does not move
them.
"""


@dataclass(frozen=True)
class Planes:
    """One image in all the forms that metrics read.

    pixels: (H, W, 3) uint8, sRGB. luma: (H, W) float32, 0 to 255, the sum of sRGB values with Rec. 709 weights.
    lab: (H, W, 3) float32, CIELAB D65. form: the means of ``lab`` over 8x8 pixels.
    """

    pixels: NDArray[np.uint8]
    luma: NDArray[np.float32]
    lab: NDArray[np.float32]
    form: NDArray[np.float64]


def make_planes(pixels: NDArray[np.uint8]) -> Planes:
    """Compute the forms of an image, ``pixels`` (H, W, 3) uint8."""
    exact = pixels.astype(np.float32)
    lab = rgb2lab(exact / np.float32(255))
    height, width = (side // FORM * FORM for side in pixels.shape[:2])
    form = downscale_local_mean(lab[:height, :width].astype(np.float64), (FORM, FORM, 1))
    return Planes(pixels, rgb2gray(exact), lab, form)
