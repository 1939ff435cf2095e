"""Two images -> ``Quality``: every metric of the candidate against the reference."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import ImageError, InputError
from vaedeploy.images.opacity import has_opacity, on_white
from vaedeploy.images.pixels import to_levels
from vaedeploy.quality.artifacts import BLOCK, Artifacts, measure_artifacts
from vaedeploy.quality.color import Color, measure_color
from vaedeploy.quality.contrast import Contrast, measure_contrast
from vaedeploy.quality.detail import Detail, measure_detail
from vaedeploy.quality.likeness import Likeness, measure_likeness
from vaedeploy.quality.opacity import Opacity, measure_opacity
from vaedeploy.quality.perceptual import Perceptual
from vaedeploy.quality.planes import make_planes
from vaedeploy.quality.tone import Tone, measure_tone
from vaedeploy.values.latent import COLORS


class Quality(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one image, the candidate, looks beside another, the reference. ``verdicts.find_faults`` judges it.

    For RGBA images, everything except ``opacity`` is measured as they look in front of white. opacity: None for RGB
    images. perceptual: None unless ``PerceptualMetrics`` measured it too; ``measure_quality`` does not.
    """

    error: Likeness
    color: Color
    contrast: Contrast
    detail: Detail
    artifacts: Artifacts
    tone: Tone
    opacity: Opacity | None = None
    perceptual: Perceptual | None = None


def measure_quality(
    reference: NDArray[np.uint8], candidate: NDArray[Any], *, factor: int = 8, tile: int | None = None
) -> Quality:
    """Measure ``candidate`` against ``reference``.

    reference: (H, W, 3) uint8, RGB, or (H, W, 4), RGBA.
    candidate: the same shape and dtype, or (3, H, W) or (4, H, W) float around [-1, 1], as
    ``VAE.decode(output="float")`` returns it, which shows NaN and infinity too.
    factor: the VAE's spatial factor, in pixels.
    tile: distance between tile borders, in pixels from the top left, where the candidate was decoded in tiles.

    Raises ImageError for other shapes and dtypes and for images with a side under 32 pixels or under ``factor``,
    InputError for a factor under 1 or a tile under 2.
    """
    _check_size("factor", factor, 1)
    if tile is not None:
        _check_size("tile", tile, 2)
    pixels = _checked_candidate(reference, candidate, max(BLOCK, factor))
    nonfinite = float(np.mean(~np.isfinite(candidate))) if candidate.dtype != np.uint8 else 0.0
    before, after = make_planes(on_white(reference)), make_planes(on_white(pixels))
    detail = measure_detail(before, after)
    return Quality(
        error=measure_likeness(before, after),
        color=measure_color(before, after),
        contrast=measure_contrast(before, after),
        detail=detail,
        artifacts=measure_artifacts(
            before, after, factor=factor, tile=tile, nonfinite=nonfinite, sharpening=detail.sharpening
        ),
        tone=measure_tone(before, after),
        opacity=measure_opacity(reference, pixels) if has_opacity(reference) else None,
    )


def measure_batch(
    references: NDArray[np.uint8], candidates: NDArray[Any], *, factor: int = 8, tile: int | None = None
) -> tuple[Quality, ...]:
    """``measure_quality`` of each batch item.

    references: (B, H, W, N) uint8. candidates: the same, or (B, N, H, W) float. Raises the errors of
    ``measure_quality``, and ImageError where the batch sizes differ.
    """
    if len(references) != len(candidates):
        raise ImageError(f"there are {len(references)} references and {len(candidates)} candidates; give one for each")
    pairs = zip(references, candidates, strict=True)
    return tuple(measure_quality(r, c, factor=factor, tile=tile) for r, c in pairs)


def _checked_candidate(reference: NDArray[Any], candidate: NDArray[Any], smallest: int) -> NDArray[np.uint8]:
    """The candidate as (H, W, N) uint8. Raises ImageError where the two images cannot be compared."""
    if reference.dtype != np.uint8 or reference.ndim != 3 or reference.shape[2] not in COLORS:
        raise ImageError(
            f"reference is {reference.dtype} of shape {reference.shape}; it must be (H, W, 3) or (H, W, 4) uint8"
        )
    height, width, channels = reference.shape
    if min(height, width) < smallest:
        raise ImageError(f"the images are {height}x{width}; each side must be at least {smallest} pixels")
    if candidate.dtype == np.uint8 and candidate.shape == reference.shape:
        pixels: NDArray[np.uint8] = candidate
        return pixels
    if np.issubdtype(candidate.dtype, np.floating) and candidate.shape == (channels, height, width):
        levels: NDArray[np.uint8] = to_levels(candidate[None].astype(np.float32))[0]
        return levels
    raise ImageError(
        f"candidate is {candidate.dtype} of shape {candidate.shape}; beside this reference it must be "
        f"{reference.shape} uint8, or {(channels, height, width)} float around [-1, 1]"
    )


def _check_size(what: str, value: int, smallest: int) -> None:
    if value < smallest:
        raise InputError(f"{what} is {value}; it must be a whole number of pixels, {smallest} or more")
