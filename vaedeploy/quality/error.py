"""How far the candidate's pixels are from the reference's."""

from __future__ import annotations

import msgspec


class Error(msgspec.Struct, frozen=True):
    """Of 8-bit pixels, against the reference.

    psnr: dB, peak 255, over all three channels; None where not one value differs.
    ssim: -1 to 1, 1 is equal. Mean structural similarity of luma, Gaussian window of 11x11 (Wang et al. 2004).
    ms_ssim: as ssim, at five scales (Wang, Simoncelli, Bovik 2003); None where a side is under 176 pixels.
    off_by_more_than_1, off_by_more_than_2: share (0 to 1) of pixels with a channel that differs by more 8-bit levels.
    """

    psnr: float | None
    ssim: float
    ms_ssim: float | None
    off_by_more_than_1: float
    off_by_more_than_2: float
