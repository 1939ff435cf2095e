"""The photographs that a VAE is verified on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vaedeploy.errors import ImageError
from vaedeploy.images.files import image_suffixes, read_image

Photo = NDArray[np.uint8]

SAMPLES = ("astronaut", "coffee", "chelsea")
"""Photographs that scikit-image carries: public domain (astronaut, NASA) and CC0."""

MOST = 9
"""Photographs of a folder that are read: as many as all shapes together have items, so that each is looked at."""


def load_photos(folder: str | Path | None = None) -> list[Photo]:
    """The photographs in ``folder``, by name, or scikit-image's: each (H, W, 3) uint8.

    Raises ImageError where there is no such folder, where it has none or where one of them cannot be read.
    """
    if folder is None:
        import skimage.data

        return [np.asarray(getattr(skimage.data, name)()) for name in SAMPLES]
    return [read_image(path) for path in photo_files(folder)[:MOST]]


def photo_files(folder: str | Path) -> list[Path]:
    """The picture files in ``folder``, by name. Raises ImageError where there is no such folder, or none in it."""
    if Path(folder).is_file():
        raise ImageError(f"{folder} is a file; give the folder that it is in")
    if not Path(folder).is_dir():
        raise ImageError(f"there is no folder {folder}; give a folder with PNG, JPEG or other pictures in it")
    suffixes = image_suffixes()
    files = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in suffixes and not p.name.startswith("."))
    if not files:
        raise ImageError(f"there is no picture in {folder}; give a folder with PNG, JPEG or other pictures in it")
    return files


def crop_middle(photo: Photo, factor: int, most: int) -> Photo:
    """The middle of (H, W, 3): sides are the largest multiples of ``factor`` of up to ``most`` pixels, or 0."""
    height, width = (min(side, most) // factor * factor for side in photo.shape[:2])
    return _crop(photo, height, width)


def crop_batch(photos: list[Photo], batch: int, height: int, width: int, first: int = 0) -> Photo:
    """A batch (B, H, W, 3): the middle of each photograph in turn, from ``first`` on, enlarged where it
    is smaller.
    """
    turn = range(first, first + batch)
    return np.stack([_crop(photos[i % len(photos)], height, width) for i in turn])


def _crop(photo: Photo, height: int, width: int) -> Photo:
    grow = max(height / photo.shape[0], width / photo.shape[1])
    if grow > 1:
        size = (max(width, round(photo.shape[1] * grow)), max(height, round(photo.shape[0] * grow)))
        photo = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return photo[top : top + height, left : left + width]
