"""The files in which kohya's sd-scripts keep latents: an ``.npz`` beside each picture.

====== ===================== ======================================================= ==================================
of     name                  arrays                                                  a latent is
====== ===================== ======================================================= ==================================
SD     ``_sd.npz``           ``latents``, ``original_size``, ``crop_ltrb``           as the VAE gives it
SDXL   ``_sdxl.npz``         the same                                                as the VAE gives it
SD3    ``_sd3.npz``          ``latents_64x48`` and so on, by the latent's height     as the VAE gives it
                             and width: a file has several sizes
FLUX.1 ``_flux.npz``         as SD3's                                                as the diffusion model sees it
====== ===================== ======================================================= ==================================

Each also has ``latents_flipped`` where the cache has mirrored pictures. The trainers shift and scale what the VAE gives
by their own numbers; their VAE of FLUX.1 does so itself.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import InputError
from vaedeploy.images.latent_cache import CachedLatent, LatentCache
from vaedeploy.values.latent import LatentSpec, numbers_text
from vaedeploy.values.words import counted

Latent = NDArray[np.float32]

FACTOR = 8
"""The factor of all VAEs whose latents sd-scripts takes."""


@dataclass(frozen=True)
class Kohya:
    """What sd-scripts takes for granted of a family of models.

    suffix: that of its files. channels, scale, shift: those of its latents. raw: whether files hold latents as the VAE
    gives them. sized: whether the names of arrays end in the size of the latent.
    """

    suffix: str
    channels: int
    scale: float
    shift: float
    raw: bool
    sized: bool


KOHYA = {
    "kohya-sd": Kohya("_sd.npz", 4, 0.18215, 0.0, raw=True, sized=False),
    "kohya-sdxl": Kohya("_sdxl.npz", 4, 0.13025, 0.0, raw=True, sized=False),
    "kohya-sd3": Kohya("_sd3.npz", 16, 1.5305, 0.0609, raw=True, sized=True),
    "kohya-flux": Kohya("_flux.npz", 16, 0.3611, 0.1159, raw=False, sized=True),
}
"""The formats of ``recast_cache``, from the code of kohya-ss/sd-scripts: its caching strategies, VAEs and trainers."""


def check_kohya(cache: LatentCache, form: str) -> None:
    """Raise InputError where sd-scripts would not read a cache's files, or would misread the latents."""
    spec = cache.info.latent
    if not _fits(spec, KOHYA[form]):
        fitting = [name for name, family in KOHYA.items() if _fits(spec, family)]
        raise InputError(
            f"{form} is for latents of {_words(KOHYA[form].channels, FACTOR, KOHYA[form].scale, KOHYA[form].shift)}, "
            f"which sd-scripts takes for granted; those of {cache.info.vae} have "
            f"{_words(spec.channels, spec.factor, spec.scale, spec.shift)}"
            + (f". Give --to {fitting[0]}" if fitting else "")
        )
    if cache.info.buckets is None and cache.info.size is None:
        raise InputError(
            f"{cache.path} keeps the sizes of pictures, and kohya's sd-scripts reads latents of its buckets. Make a "
            "cache with --buckets and --bucket-step 64"
        )


def _fits(spec: LatentSpec, family: Kohya) -> bool:
    if (spec.factor, spec.channels) != (FACTOR, family.channels):
        return False
    return all(
        math.isclose(value, wanted, rel_tol=1e-6)  # they may come from float32
        for given, wanted in ((spec.scale, family.scale), (spec.shift, family.shift))
        for value in np.ravel(given)
    )


def _words(channels: int, factor: int, scale: Any, shift: Any) -> str:
    return (
        f"{counted(channels, 'channel')}, factor {factor}, scale {numbers_text(scale)} and shift {numbers_text(shift)}"
    )


def kohya_name(form: str, key: str, original: tuple[int, int]) -> str:
    """The name of the file beside a picture. original: the picture's (height, width)."""
    height, width = original
    path = PurePosixPath(key)
    return str(path.with_name(f"{path.stem}_{width:04d}x{height:04d}{KOHYA[form].suffix}"))


def kohya_bytes(form: str, latent: CachedLatent, values: Latent, mirrored: Latent | None, place: Path) -> bytes:
    """A picture's file.

    values: the latent, (C, h, w) as the diffusion model sees it. mirrored: that of the mirrored picture. place: where
        the file will be; arrays of other sizes in a file that is there are kept, as sd-scripts does.
    """
    family = KOHYA[form]
    ending = f"_{values.shape[1]}x{values.shape[2]}" if family.sized else ""
    arrays = {
        "latents": _kept(values, family),
        "original_size": np.array(latent.original[::-1]),
        "crop_ltrb": np.array(crop_ltrb(latent)),
    }
    if mirrored is not None:
        arrays["latents_flipped"] = _kept(mirrored, family)
    others = _others(place, ending) if family.sized else {}
    data = io.BytesIO()
    named = {**others, **{name + ending: array for name, array in arrays.items()}}
    np.savez(data, **named)  # type: ignore[arg-type]  # its stub takes the names for options
    return data.getvalue()


def _kept(values: Latent, family: Kohya) -> Latent:
    return values / np.float32(family.scale) + np.float32(family.shift) if family.raw else values


def _others(place: Path, ending: str) -> dict[str, NDArray[Any]]:
    """The arrays of an existing file whose names do not end in ``ending``; none if it cannot be read."""
    try:
        with np.load(io.BytesIO(place.read_bytes())) as file:  # given a path, it leaves broken files open
            return {name: file[name] for name in file.files if not name.endswith(ending)}
    except (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return {}


def crop_ltrb(latent: CachedLatent) -> tuple[float, float, float, float]:
    """``crop_ltrb`` as sd-scripts computes it: where a picture of the original's aspect ratio lies in the bucket when
    made to fit into it. It does not depend on where the picture was cropped.
    """
    (height, width), ratio = latent.size, latent.original[1] / latent.original[0]
    inner = (height * ratio, height) if width / height > ratio else (width, width / ratio)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    return left, top, left + inner[0], top + inner[1]
