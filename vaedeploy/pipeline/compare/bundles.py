"""Bundles + photographs -> Comparison: what ``vaedeploy compare`` does."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vaedeploy.bundle import Bundle, bundle_folder
from vaedeploy.errors import ImageError, InputError
from vaedeploy.images.files import read_image
from vaedeploy.images.opacity import has_opacity, with_opacity
from vaedeploy.images.photos import Photo, crop_batch, crop_middle, photo_files
from vaedeploy.images.pixels import to_levels
from vaedeploy.page import check_folder, write_page
from vaedeploy.pipeline.compare.opacity import OnWhite
from vaedeploy.pipeline.compare.page import comparison_document
from vaedeploy.pipeline.compare.result import Comparison, Reconstruction, Speed, Verb, summarize, truest
from vaedeploy.pipeline.compare.swaps import swap_matrix
from vaedeploy.pipeline.turns import milliseconds, take_turns
from vaedeploy.quality import find_faults, measure_quality
from vaedeploy.quality.artifacts import BLOCK
from vaedeploy.quality.candidates import Candidate, Picture
from vaedeploy.runtime import VAE
from vaedeploy.system.arguments import as_list
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.latent import RGB, RGBA
from vaedeploy.values.trials import MOST_LATENTS

WHAT = "Reconstructing photographs"

LARGEST = 1024
"""The most pixels that a side of a photograph has; of a larger one the middle is taken. At this size, a VAE in float32
takes some gigabytes of memory.
"""

SWAP_SIDE = 256
"""Side, in pixels, of the crops that decoders are swapped on."""

SWAP_CROPS = 4
"""How many photographs these crops are cut from, chosen evenly from all."""

SPEED_SIDE = 512
"""Side, in pixels, of the image that is timed, rounded down to a multiple of the factors; less for factors below 4, see
``MOST_LATENTS``.
"""

ROUNDS = 5
"""How many times each VAE has its turn in the timing."""


def compare_bundles(
    bundles: Sequence[Bundle | str | Path],
    images: str | Path,
    *,
    page: str | Path | None = None,
    backend: str | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Compare several VAEs on photographs: their quality, their speed, and whether each decodes the others' latents.

    >>> comparison = vd.compare_bundles(["mse840k", "my-finetune"], "photos", page="comparison")
    >>> comparison.truest_color, comparison.truest_detail
    >>> {(swap.encoder, swap.decoder): swap.verdict for swap in comparison.swaps}

    bundles: two or more. The comparison calls each by its folder's name, or by its path where two have the same name.
    images: a folder of photographs. They are cut in the middle to sizes that all of the bundles take, and to at most
        1024 pixels a side. VAEs of RGBA images are given their opacity, and opaque ones where they have none. Where
        VAEs of RGB images are compared with them, all photographs must be opaque, and the images of the former are
        judged as they look in front of white.
    page: a folder for an HTML page that shows the comparison.
    backend: the backend that computes; None takes the first that works here, see ``VAE``.
    progress: is told how far each step is, see ``Progress``.

    All bundles are held in memory at once.

    Raises InputError for fewer than two bundles or one given twice, ImageError for images that cannot be read or are
    under 32 pixels a side, OutputError for a ``page`` that cannot be written to, before any work, PageError, which
    holds the comparison, where writing it fails afterwards, and whatever ``VAE`` raises.
    """
    given = as_list("bundles", bundles)
    names = _names([bundle.path if isinstance(bundle, Bundle) else bundle_folder(bundle) for bundle in given])
    files = photo_files(images)
    if page is not None:
        check_folder(page)
    with ExitStack() as stack:
        opened = {name: stack.enter_context(VAE(path, backend)) for name, path in names.items()}
        flattened, vaes = _alike(opened)
        rgba = not flattened and next(iter(opened.values())).latent.image_channels == RGBA
        factors = [vae.latent.factor for vae in vaes.values()]
        factor = math.lcm(*factors)
        photos = {name: _read(path, factor, rgba) for name, path in _titles(files).items()}
        pictures = _reconstruct(vaes, photos, progress)
        swap_photos = [photos[name] for name in _evenly(list(photos), SWAP_CROPS)]
        swaps, strips = swap_matrix(vaes, [crop_middle(photo, factor, SWAP_SIDE) for photo in swap_photos], progress)
        side = max(min(SPEED_SIDE, MOST_LATENTS * min(factors)) // factor, 1) * factor
        speeds = _time(vaes, crop_batch(swap_photos, 1, side, side, channels=RGBA if rgba else RGB), progress)
    rows = [
        Reconstruction(candidate.name, picture.name, candidate.quality, candidate.findings)
        for picture in pictures
        for candidate in picture.candidates
    ]
    summaries = tuple(summarize(name, [row for row in rows if row.bundle == name]) for name in vaes)
    comparison = Comparison(tuple(vaes), summaries, *truest(summaries), speeds, swaps, tuple(rows), flattened)
    if page is not None:
        write_page(comparison_document(comparison, pictures, strips), page, comparison)
    return comparison


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Each bundle by a name that no other has.

    Raises InputError for fewer than two bundles or one given twice.
    """
    if len(paths) < 2:
        raise InputError(f"{len(paths)} bundle was given; give two or more to compare")
    places = [path.resolve() for path in paths]
    for place, path in zip(places, paths, strict=True):
        if places.count(place) > 1:
            raise InputError(f"bundle {path} was given twice; give bundles that differ")
    short = [place.name for place in places]
    return {name if short.count(name) == 1 else str(path): path for name, path in zip(short, paths, strict=True)}


def _alike(vaes: Mapping[str, VAE]) -> tuple[tuple[str, ...], Mapping[str, VAE | OnWhite]]:
    """The VAEs, all of images with the same channels: beside one of RGB images, those of RGBA images are compared as
    ``OnWhite``. Also their names.
    """
    rgba = tuple(name for name, vae in vaes.items() if vae.latent.image_channels == RGBA)
    flattened = rgba if len(rgba) < len(vaes) else ()
    return flattened, {name: OnWhite(vae) if name in flattened else vae for name, vae in vaes.items()}


def _titles(files: Sequence[Path]) -> dict[str, Path]:
    """Each image file by its name, without the suffix unless two names differ in nothing else."""
    stems = [file.stem for file in files]
    return {file.stem if stems.count(file.stem) == 1 else file.name: file for file in files}


def _read(path: Path, factor: int, rgba: bool) -> Photo:
    """The middle of a photograph, with sides that ``factor`` divides. Raises ImageError where too little is left.

    rgba: whether it is to have opacity; one without is opaque then.
    """
    photo = read_image(path, opacity=rgba)
    if rgba and not has_opacity(photo):
        photo = with_opacity(photo)
    cut = crop_middle(photo, factor, LARGEST)
    if min(cut.shape[:2]) < BLOCK:
        raise ImageError(
            f"{path} is {photo.shape[0]}x{photo.shape[1]} (height x width); to be measured, a picture must have "
            f"{BLOCK} pixels a side once it is cut to multiples of {factor}"
        )
    return cut


def _evenly(names: list[str], count: int) -> list[str]:
    """``count`` of ``names`` at even distances, or all where there are fewer."""
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    return [names[place] for place in places]


def _reconstruct(
    vaes: Mapping[str, VAE | OnWhite], photos: Mapping[str, Photo], progress: Progress
) -> tuple[Picture, ...]:
    total, done = len(vaes) * len(photos), 0
    progress(WHAT, 0, total)
    pictures = []
    for title, photo in photos.items():
        candidates = []
        for name, vae in vaes.items():
            # As float, so that NaN shows: bytes would hide it.
            image = vae.decode(vae.encode(photo), output="float")[0]
            quality = measure_quality(photo, image, factor=vae.latent.factor)
            candidates.append(Candidate(name, to_levels(image[None])[0], quality, find_faults(quality)))
            progress(WHAT, done := done + 1, total)
        pictures.append(Picture(title, photo, tuple(candidates)))
    return tuple(pictures)


def _time(vaes: Mapping[str, VAE | OnWhite], photo: Photo, progress: Progress) -> tuple[Speed, ...]:
    """Time all VAEs in turns, so that whatever disturbs one of them disturbs all."""
    height, width = photo.shape[1:3]
    latents = {name: vae.encode(photo) for name, vae in vaes.items()}
    encode = {name: functools.partial(vae.encode, photo) for name, vae in vaes.items()}
    decode = {name: functools.partial(vae.decode, latents[name]) for name, vae in vaes.items()}
    speeds: list[Speed] = []

    def add(part: Verb, calls: Mapping[str, Callable[[], Any]]) -> None:
        for name, (seconds, problem) in take_turns(calls, ROUNDS).items():
            row = Speed(name, vaes[name].backend, part, height, width, problem=problem)
            if seconds:
                row = msgspec.structs.replace(row, **milliseconds(seconds))
            speeds.append(row)

    progress("Timing", 0, 2)
    add("encode", encode)
    progress("Timing", 1, 2)
    add("decode", decode)
    progress("Timing", 2, 2)
    return tuple(speeds)
