"""How close the candidate's pixels are to the reference's: PSNR, SSIM, MS-SSIM and the share that differs."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from skimage.transform import downscale_local_mean

from vaedeploy.images.pixels import pixel_errors
from vaedeploy.quality.planes import Planes

WINDOW = 11
"""Side of SSIM's window in pixels: a Gaussian of 1.5 pixels, cut off at 3.5 standard deviations (Wang et al. 2004)."""

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of MS-SSIM's scales, finest first (Wang, Simoncelli, Bovik 2003, section 4)."""

SMALLEST = WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)
"""Shortest side, in pixels, that still holds a window at the coarsest scale."""


class Likeness(msgspec.Struct, frozen=True):
    """Similarity of the candidate's 8-bit pixels to the reference's.

    psnr: dB, peak 255, over all three channels; None where no value differs.
    ssim: -1 to 1, 1 is equal. Mean structural similarity of luma in a Gaussian window of 11x11 (Wang et al. 2004).
    ms_ssim: like ssim, at five scales (Wang, Simoncelli, Bovik 2003); None where a side is under 176 pixels.
    off_by_more_than_1, off_by_more_than_2: share (0 to 1) of pixels with a channel that differs by more 8-bit levels.
    """

    psnr: float | None
    ssim: float
    ms_ssim: float | None
    off_by_more_than_1: float
    off_by_more_than_2: float


def measure_likeness(reference: Planes, candidate: Planes) -> Likeness:
    difference = np.abs(candidate.pixels.astype(np.int16) - reference.pixels)
    worst = difference.max(axis=2)
    return Likeness(
        psnr=pixel_errors(candidate.pixels, reference.pixels)["psnr"],
        ssim=_similarity(reference.luma, candidate.luma),
        ms_ssim=_multiscale(reference.luma, candidate.luma) if min(worst.shape) >= SMALLEST else None,
        off_by_more_than_1=float(np.mean(worst > 1)),
        off_by_more_than_2=float(np.mean(worst > 2)),
    )


def _similarity(reference: NDArray[np.float32], candidate: NDArray[np.float32], luminance: bool = True) -> float:
    """SSIM. Without ``luminance`` its luminance term is 1, because its constant K1 is made very large."""
    constant = {} if luminance else {"K1": 1e4}
    return float(
        structural_similarity(
            reference, candidate, data_range=255, gaussian_weights=True, use_sample_covariance=False, **constant
        )
    )


def _multiscale(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> float:
    """MS-SSIM: the weighted product of contrast and structure at every scale, and of luminance at the coarsest.

    A negative term counts as 0.
    """
    product = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS, 1):
        last = scale == len(SCALE_WEIGHTS)
        product *= max(_similarity(reference, candidate, luminance=last), 0.0) ** weight
        if not last:
            reference, candidate = (_halved(luma) for luma in (reference, candidate))
    return product


def _halved(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = (side // 2 * 2 for side in luma.shape)
    halved: NDArray[np.float32] = downscale_local_mean(luma[:height, :width], (2, 2)).astype(np.float32)
    return halved
