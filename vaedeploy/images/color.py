"""Colours of images that carry a colour profile, converted to sRGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from vaedeploy.errors import ImageError


def to_srgb(image: Image.Image, data: bytes, path: Path | str) -> Image.Image:
    """Convert the image from its embedded colour profile ``data`` to sRGB.

    The intent is relative colorimetric (white stays white) with black point compensation (black stays black), as in
    browsers. path: for messages. Raises ImageError for a profile that cannot be used on the image.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        if space == "RGB":
            image = image.convert("RGB")
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise ImageError(
            f"{path} has a colour profile that cannot be used on it: {error}. Save it again in sRGB, or without profile"
        ) from error
    if image.mode == "RGB" and _is_srgb(transform):
        return image
    result = ImageCms.applyTransform(image, transform)
    assert result is not None  # applyTransform gives None only with inPlace=True
    return result


def _is_srgb(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform to sRGB changes colours by no more than rounding; then it is better to keep the pixels."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    result = ImageCms.applyTransform(Image.fromarray(grid), transform)
    return result is not None and bool(np.abs(np.asarray(result).astype(int) - grid).max() <= 1)
