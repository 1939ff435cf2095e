"""The size of the images on which a VAE is tried: one rule for the probe, the calibration and the verification.

Faults depend on sizes in latents (an odd one, a wide one), the cost on sizes in pixels. At factor 8, sides of 8 to 24
latents are 64 to 192 pixels, and quick. At factor 128 they would be 1024 to 3072 pixels, and the cases of a
verification 13 megapixels. So from factor 16 on, a side has fewer latents, and about as many pixels as at 8:

    factor      below 16    16 to 31    32 to 63    64 and more
    latents     8  12  24   4  6  12    2  3  6     1  2  3
"""

from __future__ import annotations

FEWER = ((64, 8), (32, 4), (16, 2), (1, 1))
"""(factor, divisor): from this factor on, sides have so many times fewer latents. From 64 on the smallest side has 1,
and cannot have fewer.
"""

MOST_LATENTS = 128
"""The most latents of a side, whatever the factor: attention over 256x256 elements takes sixteen times the time and
memory of 128x128. With 512x512 images, factors from 4 on do not exceed it.
"""


def trial_latents(latents: int, factor: int) -> int:
    """How many latents a side has at that spatial factor, instead of ``latents`` at factor 8; at least 1.

    >>> [trial_latents(12, factor) for factor in (8, 16, 32, 64, 128)]
    [12, 6, 3, 2, 2]
    """
    divisor = next(divisor for least, divisor in FEWER if factor >= least)
    return -(-latents // divisor)
