"""Reading and writing image files."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from vaedeploy.errors import BackendError, ImageError, OutputError
from vaedeploy.images.color import to_srgb
from vaedeploy.images.opacity import OPAQUE, with_opacity
from vaedeploy.images.plugins import format_names, plugin_formats, plugin_message
from vaedeploy.system.atomic import write_file
from vaedeploy.system.files import special
from vaedeploy.system.oserrors import reason
from vaedeploy.system.places import is_file, is_folder
from vaedeploy.values.latent import COLORS, RGB, RGBA

READ_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are read. Pillow reads more, some by starting other programs, which a stranger's
file should not be able to do.
"""

MOST_PIXELS = 2**27
"""The most pixels of an image that is read (134 million: 11,585 x 11,585). A file of kilobytes can state any number,
and each pixel takes up to 20 bytes of memory while it is converted.
"""

TOO_LARGE = "{} is too large: it has {:,} pixels, and at most {:,} are read. Crop it or make it smaller first"

log = logging.getLogger(__name__)

WRITE_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),  # exact: keeps the colours under transparent pixels
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
    ".bmp": ("BMP", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
}
"""Suffix -> Pillow's name of the format that is written, and the options for Pillow's ``save``."""

KEEPS_OPACITY = (".png", ".webp", ".tif", ".tiff")
"""Suffixes of the formats for images with opacity. JPEG has no opacity, and few programs read BMP's."""


def image_suffixes() -> tuple[str, ...]:
    """The suffixes of image files that can be read, in lower case, for finding such files in a folder: ``.png``, ..."""
    forms = (*READ_FORMATS, *plugin_formats())  # Pillow opens MPO as JPEG, so it is not in ``readable_formats``
    return tuple(sorted(suffix for suffix, form in Image.registered_extensions().items() if form in forms))


def readable_formats() -> list[str]:
    """Pillow's names of the formats that are read here: those of ``READ_FORMATS`` that Pillow was built with, and those
    of plugins that are installed.
    """
    Image.init()
    return [form for form in READ_FORMATS if form in Image.OPEN] + plugin_formats()


def files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files in ``folder`` whose names end in one of ``suffixes``, in the order of their names.

    Other files and folders are left out with a logged warning that counts them; hidden ones silently. Raises OSError if
    the folder cannot be read.
    """
    places = sorted(place for place in folder.iterdir() if not place.name.startswith("."))
    files = [place for place in places if place.suffix.lower() in suffixes and is_file(place)]
    if others := sorted((_kind(place), place.name) for place in places if place not in set(files)):
        kinds = []
        for kind, group in groupby(others, key=lambda other: other[0]):
            names = [name for _, name in group]
            several = len(names) > 1
            kinds.append(f"{len(names)} {kind}{'s' if several else ''} ({names[0]}{', ...' if several else ''})")
        log.warning("left out of %s: %s", folder, ", ".join(kinds))
    return files


def _kind(place: Path) -> str:
    if is_folder(place):
        return "folder"
    return " ".join((place.suffix.lower(), "file" if is_file(place) else "device, pipe or broken link")).strip()


def read_image(path: str | Path, *, opacity: bool = False) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) uint8 RGB in sRGB; with ``opacity``, one that has an alpha channel or declares a
    colour transparent as (H, W, 4) uint8 RGBA, not premultiplied.

    - The image is rotated and mirrored as its EXIF data says. Of several frames, the first is read.
    - An image with a colour profile other than sRGB is converted to sRGB. One without a profile is taken to be in sRGB;
      CMYK without a profile is converted by Pillow's plain formula.
    - Grey becomes equal R, G and B.
    - 16 bits become 8: grey is rounded; of colour and opacity, Pillow drops the lower byte.
    - Without ``opacity``, an alpha channel is dropped if it is opaque everywhere.

    Raises ImageError if the file is missing, empty, truncated or not an image, if it has no pixels or more than
    ``MOST_PIXELS``, if it has transparent pixels (without ``opacity``) or a broken colour profile, for 32-bit and Lab
    images, and for TIFF files that begin with a preview, as camera raw files do. Raises BackendError where there is not
    enough memory.
    """
    path = Path(path)
    try:
        if fault := special(path):
            raise ImageError(f"{path} {fault}; give an image file")
        if path.is_file() and path.stat().st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes)")
        return _read(path, path, opacity, MOST_PIXELS)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {reason(error)}") from error
    except ValueError as error:  # a path with a null character
        raise ImageError(f"{path} cannot be read: {error}") from error


def image_from_bytes(data: bytes, name: str, *, most: int, opacity: bool = False) -> NDArray[np.uint8]:
    """The content of an image file, read as by ``read_image``. name: for messages. most: pixels that it may have."""
    if not data:
        raise ImageError(f"{name} is empty (0 bytes)")
    return _read(io.BytesIO(data), name, opacity, min(most, MOST_PIXELS))


def _read(source: Path | io.BytesIO, name: Path | str, opacity: bool, most: int) -> NDArray[np.uint8]:
    """Read an image that Pillow opens. Raises ImageError, and OSError for a path that cannot be opened."""
    with opened(source, name, most) as image:
        image.load()
        return _pixels(image, opacity, name)


def format_of(source: Path | IO[bytes]) -> str | None:
    """Pillow's name of an image file's format; None if the file is not an image that can be read."""
    try:
        with opened(source, str(source)) as image:
            return image.format
    except (ImageError, OSError):
        return None


@contextmanager
def opened(source: Path | IO[bytes], name: Path | str, most: int = MOST_PIXELS) -> Iterator[Image.Image]:
    """Context with an image that Pillow has opened, and not decoded yet. name: for messages.

    Raises ImageError for what is no image of a format that is read, for more than ``most`` pixels, and for whatever
    Pillow raises in the context, where it decodes; OSError for a path that cannot be opened.
    """
    try:
        with Image.open(source, formats=readable_formats()) as image:
            if image.width * image.height > most:
                raise ImageError(TOO_LARGE.format(name, image.width * image.height, most))
            if getattr(image, "tag_v2", {}).get(ExifTags.Base.NewSubfileType, 0) & 1:  # a smaller form of another one
                raise ImageError(
                    f"{name} begins with a small preview of its picture, as the raw files of cameras do. Save the "
                    "picture itself as a TIFF, PNG or JPEG file"
                )
            yield image
    except (ImageError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except UnidentifiedImageError as error:
        known = ", ".join((*READ_FORMATS, *format_names()))
        other = f"{name} is not an image, or has no pixels; formats that can be read: {known}"
        raise ImageError(plugin_message(source, name) or other) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        has, limit = map(int, re.findall(r"\d+", str(error))[:2])  # refused before it could say how many it has
        raise ImageError(TOO_LARGE.format(name, has, min(limit, most))) from error
    except MemoryError as error:
        raise _no_memory(name) from error
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more on broken files.
    except Exception as error:
        broken = plugin_message(source, name) or f"{name} cannot be decoded, it is truncated or broken: {error}"
        raise ImageError(broken) from error


def _no_memory(name: Path | str) -> BackendError:
    """Not an ImageError: the picture may be whole."""
    return BackendError(f"there is not enough memory to decode {name}. Free some, or make the picture smaller")


def is_pillow(value: object) -> bool:
    """Whether ``value`` is an image of Pillow."""
    return isinstance(value, Image.Image)


def read_pillow(image: Image.Image, *, opacity: bool = False) -> NDArray[np.uint8]:
    """An image that Pillow has opened or made, converted as ``read_image`` does.

    Raises ImageError as ``read_image`` does for what is in the file.
    """
    file = getattr(image, "filename", "")  # only opened images have one
    name = f"Pillow's image {file}".rstrip()
    if image.width * image.height == 0:
        raise ImageError(f"{name} has no pixels: it is {image.height}x{image.width} (height x width)")
    try:
        image.load()
        return _pixels(image, opacity, name)
    except ImageError:
        raise
    except MemoryError as error:
        raise _no_memory(name) from error
    except Exception as error:  # as in read_image
        raise ImageError(f"{name} cannot be decoded, it is truncated or broken: {error}") from error


def check_image_name(path: Path, channels: int = RGB) -> None:
    """Raise OutputError if ``write_image`` has no format for the suffix of ``path`` that holds images of that many
    channels.
    """
    suffix = path.suffix.lower()
    fitting = KEEPS_OPACITY if channels == RGBA else tuple(WRITE_OPTIONS)
    if suffix in WRITE_OPTIONS and suffix not in fitting:
        raise OutputError(
            f"cannot write a picture with opacity to {path}: {WRITE_OPTIONS[suffix][0]} files hold none. Give a name "
            f"that ends in one of {', '.join(fitting)}"
        )
    if suffix not in fitting:
        raise OutputError(f"cannot write a picture to {path}: give a name that ends in one of {', '.join(fitting)}")


def write_image(path: str | Path, image: NDArray[np.uint8]) -> None:
    """Write an image (H, W, 3) uint8 RGB, or (H, W, 4) RGBA, in the format of the suffix of ``path``, in one step.

    All formats are lossless except JPEG (quality 95, full colour resolution). Those of ``KEEPS_OPACITY`` hold RGBA, the
    colours of transparent pixels included.

    Raises OutputError for a suffix that ``WRITE_OPTIONS`` lacks, for RGBA in a format without opacity, and for a path
    that cannot be written to, ImageError for an array of another shape or dtype or without pixels.
    """
    path = Path(path)
    write_file(path, image_bytes(image, path))


def image_bytes(image: NDArray[np.uint8], path: Path) -> bytes:
    """What ``write_image`` writes to ``path``, which is used for its suffix and for messages."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in COLORS or image.size == 0:
        raise ImageError(f"image is {image.dtype} of shape {image.shape}; a picture is (H, W, 3) or (H, W, 4) uint8")
    check_image_name(path, image.shape[2])
    form, options = WRITE_OPTIONS[path.suffix.lower()]
    data = io.BytesIO()
    try:
        Image.fromarray(image).save(data, form, **options)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path}: a picture of {image.shape[0]}x{image.shape[1]} (height x width) cannot be written as {form}: "
            f"{error}. Write it as .png"
        ) from error
    return data.getvalue()


def _pixels(image: Image.Image, opacity: bool, path: Path | str) -> NDArray[np.uint8]:
    """The pixels of a loaded image as ``read_image`` gives them. ``path`` is for messages."""
    return _upright(_to_srgb(image, opacity, path), image.getexif().get(ExifTags.Base.Orientation, 1))


def _to_srgb(image: Image.Image, opacity: bool, path: Path | str) -> NDArray[np.uint8]:
    """``image``, in whatever mode Pillow opened it, as ``read_image`` gives it, but not yet turned upright."""
    profile = image.info.get("icc_profile")
    # Pillow opens 16-bit PGM files, and its older versions 16-bit PNG files, in "I", its mode for 32 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = _eight_bits(image)
    channel = None
    if image.has_transparency_data:
        image, channel = _apart(image)
        if not opacity and not (channel == OPAQUE).all():
            raise ImageError(
                f"{path} has transparent pixels, whose colour depends on what is behind. Flatten it onto a background "
                "first"
            )
    if image.mode in ("1", "P", "YCbCr", "RGBX"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image.mode not in ("L", "RGB", "CMYK"):
        raise ImageError(f"{path} is a picture of Pillow's mode {image.mode}, which is not read. Save it as 8-bit RGB")
    pixels = np.array(to_srgb(image, profile, path) if profile else image.convert("RGB"))
    return with_opacity(pixels, channel) if opacity and channel is not None else pixels


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels (H, W, N) turned upright by EXIF's ``orientation``, 1 to 8; any other number is taken as 1 (upright)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey image rounded to 8 bits. A grey level that it declares transparent becomes an alpha channel."""
    levels = np.asarray(image).astype(np.uint32)
    # The divisor is 65535 / 255 = 257, so that full white stays full white.
    grey = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(levels == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _apart(image: Image.Image) -> tuple[Image.Image, NDArray[np.uint8]]:
    """The image without its alpha channel, and that channel, (H, W) uint8."""
    opaque_mode = "L" if image.mode in ("L", "LA", "La", "1") else "RGB"
    image = image.convert("RGBA")
    return image.convert(opaque_mode), np.asarray(image.getchannel("A"))
