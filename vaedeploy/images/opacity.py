"""Images with opacity: adding it, and how such an image looks in front of something.

An image with opacity is (H, W, 4) uint8: RGB, not premultiplied, and opacity from 0, which is transparent, to 255. Its
transparent pixels have colours too, which are not seen but which VAEs encode.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import ImageError, InputError
from vaedeploy.values.latent import RGB

Pixels = NDArray[np.uint8]

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

OPAQUE = 255

WHITE = 255

SQUARE = 8
"""Side, in pixels, of a checkerboard's squares."""

BOARD = (255, 204)
"""The two greys of the checkerboard behind a transparent picture."""

CLEAR = 0.25
"""How far, as a share of the width, a verification mask's range goes beyond an image's left and right borders: a sixth
of the image on the left is transparent, and as much on the right is opaque.
"""


def has_opacity(pixels: Pixels) -> bool:
    """Whether an image or a batch of images, (..., H, W, N), has opacity as its fourth channel."""
    return bool(pixels.shape[-1] != RGB)


def with_opacity(pixels: Pixels, opacity: Pixels | int = OPAQUE) -> Pixels:
    """Images (..., H, W, 3) -> (..., H, W, 4) with that ``opacity``, (..., H, W) or a number."""
    channel = np.broadcast_to(np.asarray(opacity, np.uint8), pixels.shape[:-1])[..., None]
    return np.concatenate([pixels, channel], axis=-1)


def is_opaque(pixels: Pixels) -> bool:
    """Whether an image is opaque everywhere."""
    return not has_opacity(pixels) or bool((pixels[..., RGB] == OPAQUE).all())


def verification_mask(height: int, width: int) -> Pixels:
    """The opacity, (height, width), of photographs on which VAEs with opacity are verified.

    From left to right, opacity grows evenly: a sixth of the image is transparent, with the photograph's colours hidden
    under it, and a sixth is opaque. In the middle, an opaque ellipse of half the height and half the width has a hard
    edge. So each size has smooth and sharp opacity, and all of its levels.
    """
    across = (np.arange(width) + 0.5) / width
    down = (np.arange(height)[:, None] + 0.5) / height
    ramp = np.clip(across * (1 + 2 * CLEAR) - CLEAR, 0, 1)
    inside = (4 * (across - 0.5)) ** 2 + (4 * (down - 0.5)) ** 2 <= 1
    mask: Pixels = np.rint(np.where(inside, 1.0, ramp) * OPAQUE).astype(np.uint8)
    return mask


def on_white(pixels: Pixels) -> Pixels:
    """An image, (..., H, W, N), as it looks in front of white: (..., H, W, 3). One without opacity is unchanged."""
    return _in_front_of(pixels, np.float32(WHITE))


def check_background(background: Color | None, rgba: bool) -> None:
    """Raise InputError for a ``background`` if images keep their opacity (``rgba``), where it is useless."""
    if background is not None and rgba:
        raise InputError("background is for VAEs of RGB images, and images have opacity here; leave it out")


def flattened(pixels: Pixels, background: Color | None, name: Path | str) -> Pixels:
    """An image (..., H, W, N) as it looks in front of ``background``: (..., H, W, 3). One without opacity is unchanged.

    Raises ImageError, which calls the image ``name``, where it has transparent pixels and there is no background.
    """
    if background is None and not is_opaque(pixels):
        raise ImageError(
            f"{name} has transparent pixels, whose colour depends on what is behind. Set it with --background, such as "
            "--background white, or flatten the picture first"
        )
    return _in_front_of(pixels, np.array(background or (WHITE,) * 3, np.float32))


def as_seen(pixels: Pixels) -> Pixels:
    """An image as it counts in a comparison: colours in front of white, and opacity as a separate channel, (..., H, W,
    N). Colours that nobody sees do not count. An image without opacity is unchanged.
    """
    return with_opacity(on_white(pixels), pixels[..., RGB]) if has_opacity(pixels) else pixels


def on_checkerboard(pixels: Pixels) -> Pixels:
    """An image (H, W, N) in front of a checkerboard, (H, W, 3), so that a person sees what is transparent. One without
    opacity is unchanged.
    """
    rows, columns = (np.arange(side) // SQUARE for side in pixels.shape[:2])
    board = np.where((rows[:, None] + columns) % 2, *map(np.float32, reversed(BOARD)))
    return _in_front_of(pixels, board[..., None])


def _in_front_of(pixels: Pixels, behind: NDArray[np.float32] | np.float32) -> Pixels:
    if not has_opacity(pixels):
        return pixels
    share = pixels[..., RGB:].astype(np.float32) / np.float32(OPAQUE)
    seen: Pixels = np.rint(pixels[..., :RGB] * share + behind * (1 - share)).astype(np.uint8)
    return seen
