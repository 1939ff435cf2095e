"""The photographs on which a VAE is verified, and crops of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vaedeploy.errors import ImageError, InputError
from vaedeploy.images.files import files_in, image_suffixes, read_image
from vaedeploy.images.opacity import has_opacity, is_opaque, verification_mask, with_opacity
from vaedeploy.system.arguments import as_list, refuse_repeats
from vaedeploy.system.missing import missing
from vaedeploy.system.oserrors import reason
from vaedeploy.system.places import is_file, is_folder
from vaedeploy.values.latent import RGB, RGBA

Photo = NDArray[np.uint8]
"""A photograph (H, W, 3), or a batch of photographs (B, H, W, 3), uint8 RGB; with a fourth channel, RGBA."""

SAMPLES = ("astronaut", "coffee", "chelsea")
"""Photographs in ``skimage.data``. The astronaut is in the public domain (NASA), the others are CC0."""

log = logging.getLogger(__name__)

GIVE = "Give a picture, or a folder with PNG, JPEG or other pictures in it"

MOST = 9
"""The most photographs of a folder that are read: the number of items in all verification shapes together, so that each
photograph is used at least once.
"""


def load_photos(folder: str | Path | None = None, channels: int = RGB) -> list[Photo]:
    """The first ``MOST`` photographs in ``folder``, in the order of their names, each (H, W, 3) uint8.

    channels: those of the VAE's images. With 4, a picture that is transparent anywhere is (H, W, 4); ``crop_batch``
    gives opacity to the others.

    Without ``folder``, the ``SAMPLES`` of scikit-image. Files that cannot be read, and for 3 ``channels`` transparent
    ones, are left out with a logged warning. Raises ImageError if the folder does not exist, has no image files, or
    none that can be read.
    """
    if folder is None:
        import skimage.data

        return [np.asarray(getattr(skimage.data, name)()) for name in SAMPLES]
    photos: list[Photo] = []
    failures: list[str] = []
    for path in photo_files(folder):
        try:
            photos.append(read_image(path, opacity=channels == RGBA))
        except ImageError as error:
            failures.append(str(error))
        if len(photos) == MOST:
            break
    if not photos:
        raise ImageError(none_left(failures))
    for failure in failures:
        log.warning("left out: %s", failure)
    return [photo[..., :RGB] if is_opaque(photo) else photo for photo in photos]


def none_left(failures: Sequence[str]) -> str:
    """The message if every picture failed. failures: a sentence for each."""
    if len(failures) == 1:
        return failures[0]
    return "\n  ".join((f"none of {len(failures)} pictures can be used:", *failures))


def photo_files(folder: str | Path) -> list[Path]:
    """The image files in ``folder``, sorted by name, or ``folder`` itself if it is a file. Raises ImageError if it does
    not exist or has no image files.
    """
    if is_file(folder):
        return [Path(folder)]
    if not is_folder(folder):
        raise ImageError(f"{missing('file or folder', folder, _may_hold_pictures)}. {GIVE}")
    try:
        files = files_in(Path(folder), image_suffixes())
    except OSError as error:
        raise ImageError(f"{folder} cannot be read: {reason(error)}") from error
    if not files:
        raise ImageError(f"there is no picture in {folder}. {GIVE}")
    return files


def image_files(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """Image files, and those in folders, from one path or a list of paths.

    Raises InputError for an empty list, one with something else in it, and a file given twice, and ImageError for a
    missing file and for what ``photo_files`` refuses.
    """
    if isinstance(given, str | Path):
        return photo_files(given)
    paths = as_list("images", given)
    for number, path in enumerate(paths):
        if not isinstance(path, str | Path):
            raise InputError(f"image {number} is of type {type(path).__name__}; give the path of a file or a folder")
    files = [file for path in map(Path, paths) for file in (photo_files(path) if is_folder(path) else [path])]
    if not files:
        raise InputError("no image was given; give files, or folders of them")
    for file in files:
        if not is_file(file):
            raise ImageError(missing("picture", file, _may_hold_pictures) + _about_spaces(file))
    refuse_repeats("picture", files)
    return files


def _may_hold_pictures(path: Path) -> bool:
    return path.suffix.lower() in image_suffixes() or is_folder(path)


def _about_spaces(file: Path) -> str:
    """What to do if a shell has split a file's name at a space."""
    cut = is_folder(file.parent) and any(other.name.startswith(f"{file.name} ") for other in file.parent.iterdir())
    return "; put a name with spaces in it into quotes" if cut else ""


def crop_middle(photo: Photo, factor: int, most: int) -> Photo:
    """The middle of a photograph (H, W, N).

    Each side of the crop is the largest multiple of ``factor`` that fits both the photograph and ``most`` pixels; it is
    0 if none does.
    """
    height, width = (min(side, most) // factor * factor for side in photo.shape[:2])
    return _crop(photo, height, width)


def shrink_middle(photo: Photo, factor: int, most: int) -> Photo:
    """The middle of a photograph (H, W, N) that is shrunk first, so that its shorter side is ``most``.

    That keeps what it shows, such as a face, in the picture. A smaller photograph is not enlarged. The sides are those
    of ``crop_middle``.
    """
    if min(photo.shape[:2]) > most:
        photo = _covering(photo, most, most)
    return crop_middle(photo, factor, most)


def crop_batch(
    photos: list[Photo], batch: int, height: int, width: int, first: int = 0, *, channels: int = RGB
) -> Photo:
    """A batch (B, H, W, channels): the middle of each photograph in turn, starting with ``photos[first]``.

    A photograph that is too small is enlarged. After the last photograph the first one follows again. Where
    ``channels`` is 4, photographs without opacity get ``verification_mask``.
    """
    crops = [_crop(photos[i % len(photos)], height, width) for i in range(first, first + batch)]
    if channels == RGBA:
        mask = verification_mask(height, width)
        crops = [crop if has_opacity(crop) else with_opacity(crop, mask) for crop in crops]
    return np.stack(crops)


def full_sizes(photos: list[Photo], batch: int, first: int = 0) -> tuple[tuple[int, int], ...]:
    """(height, width) of the photographs from which ``crop_batch`` takes its items."""
    chosen = (photos[i % len(photos)] for i in range(first, first + batch))
    return tuple((photo.shape[0], photo.shape[1]) for photo in chosen)


def _crop(photo: Photo, height: int, width: int) -> Photo:
    if height > photo.shape[0] or width > photo.shape[1]:
        photo = _covering(photo, height, width)
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return photo[top : top + height, left : left + width]


def _covering(photo: Photo, height: int, width: int) -> Photo:
    """The photograph (H, W, N), enlarged or shrunk until ``height`` x ``width`` pixels just fit into it."""
    scale = max(height / photo.shape[0], width / photo.shape[1])
    size = (max(width, round(photo.shape[1] * scale)), max(height, round(photo.shape[0] * scale)))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))
