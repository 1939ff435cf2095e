"""Photographs -> what VAEs make of them, judged: what ``compare`` and ``look`` have in common."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from vaedeploy.errors import ImageError
from vaedeploy.images.cut import MOST_TOLD, Cut, cuts_line
from vaedeploy.images.files import read_image
from vaedeploy.images.opacity import Color, check_background, flattened, has_opacity, with_opacity
from vaedeploy.images.photos import Photo, crop_middle, none_left
from vaedeploy.images.pixels import to_levels
from vaedeploy.pipeline.compare.opacity import OnWhite
from vaedeploy.pipeline.compare.result import Reconstruction
from vaedeploy.quality import find_faults, load_perceptual, measure_quality
from vaedeploy.quality.artifacts import BLOCK
from vaedeploy.quality.candidates import Candidate, Picture
from vaedeploy.quality.perceptual import PerceptualMetrics
from vaedeploy.runtime import VAE
from vaedeploy.runtime.failures import is_out_of_memory
from vaedeploy.system.progress import Progress

log = logging.getLogger(__name__)

WHAT = "Reconstructing photographs"

SEEN = "Measuring LPIPS and DISTS"

LARGEST = 1024
"""The most pixels that a side of a photograph may have; the middle of a larger one is taken. At this size, a VAE in
float32 takes some gigabytes of memory.
"""


def read_photos(
    files: Sequence[Path], factor: int, rgba: bool, background: Color | None
) -> tuple[dict[str, Photo], dict[str, Cut], tuple[str, ...]]:
    """The middle of each photograph by its file's name, with sides that ``factor`` divides; what was cut, by the same
    names; and a sentence for each photograph that cannot be read, or of which too little is left.

    rgba: whether to give them opacity; photographs without it become opaque. background: the colour behind transparent
    ones; without it and without ``rgba`` these cannot be read.

    Raises ImageError where no photograph is left, and InputError for a ``background`` that ``rgba`` has no use for.
    """
    check_background(background, rgba)
    photos: dict[str, Photo] = {}
    cuts: dict[str, Cut] = {}
    failures: list[str] = []
    for name, path in _titles(files).items():
        try:
            photo = _read(path, rgba, background)
            photos[name] = middle = _middle(photo, path, factor)
        except ImageError as error:
            failures.append(str(error))
            continue
        if middle.shape != photo.shape:
            cuts[name] = Cut(name, *middle.shape[:2], *photo.shape[:2])
    if not photos:
        raise ImageError(none_left(failures))
    if cuts:
        names = f" They are {', '.join(cuts)}." if len(cuts) > MOST_TOLD else ""
        log.warning(
            "pictures are cut to sizes that the VAE takes, of at most %d pixels a side. %s%s",
            LARGEST,
            cuts_line(list(cuts.values()), len(photos)),
            names,
        )
    return photos, cuts, tuple(failures)


def reconstruct(
    vaes: Mapping[str, VAE | OnWhite], photos: Mapping[str, Photo], cuts: Mapping[str, Cut], progress: Progress
) -> tuple[Picture, ...]:
    """Each photograph with what each VAE makes of it. photos, cuts: as ``read_photos`` gives them."""
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
        pictures.append(Picture(title, photo, tuple(candidates), cuts.get(title)))
    return tuple(pictures)


def with_perceptual(pictures: Sequence[Picture], progress: Progress) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """The pictures with LPIPS and DISTS of each candidate where these can be computed, and sentences for what cannot.

    Call it when the VAEs are closed: PyTorch computes these, and needs memory and cores.
    """
    metrics = load_perceptual()
    try:
        return _measured(pictures, metrics, progress), metrics.left_out
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        log.info("PyTorch found no memory: %s", error)
        return tuple(pictures), ("LPIPS and DISTS were left out: there is not enough memory. Give smaller photographs",)


def _measured(pictures: Sequence[Picture], metrics: PerceptualMetrics, progress: Progress) -> tuple[Picture, ...]:
    total, done = sum(len(picture.candidates) for picture in pictures), 0
    measured = []
    for picture in pictures:
        candidates = []
        for candidate in picture.candidates:
            if found := metrics.measure(picture.reference, candidate.pixels):
                quality = msgspec.structs.replace(candidate.quality, perceptual=found)
                candidate = msgspec.structs.replace(candidate, quality=quality)
                progress(SEEN, done := done + 1, total)
            candidates.append(candidate)
        measured.append(msgspec.structs.replace(picture, candidates=tuple(candidates)))
    return tuple(measured)


def reconstructions(pictures: Sequence[Picture]) -> tuple[Reconstruction, ...]:
    """What was measured of each picture, without its pixels."""
    return tuple(
        Reconstruction(candidate.name, picture.name, candidate.quality, candidate.findings)
        for picture in pictures
        for candidate in picture.candidates
    )


def cuts_of(pictures: Sequence[Picture]) -> tuple[Cut, ...]:
    """The part that was looked at, for each picture that was cut."""
    return tuple(picture.cut for picture in pictures if picture.cut)


def _titles(files: Sequence[Path]) -> dict[str, Path]:
    """Each image file by its title: its name without the suffix. Where others have the same one, the suffix is added,
    and then as many of the folders that it is in as it takes.
    """
    titles, parts = [file.stem for file in files], 0
    while repeated := {title for title, count in Counter(titles).items() if count > 1}:
        parts += 1
        titles = [
            "/".join(file.parts[-parts:]) if title in repeated else title
            for file, title in zip(files, titles, strict=True)
        ]
    return dict(zip(titles, files, strict=True))


def _read(path: Path, rgba: bool, background: Color | None) -> Photo:
    """A photograph with the channels that ``read_photos`` describes. Raises ImageError where it cannot be read so."""
    photo = read_image(path, opacity=True)
    if not rgba:
        photo = flattened(photo, background, path)
    elif not has_opacity(photo):
        photo = with_opacity(photo)
    return photo


def _middle(photo: Photo, path: Path, factor: int) -> Photo:
    """The middle of a photograph, as ``read_photos`` gives it. Raises ImageError where too little is left."""
    middle = crop_middle(photo, factor, LARGEST)
    if min(middle.shape[:2]) < BLOCK:
        raise ImageError(
            f"{path} is {photo.shape[0]}x{photo.shape[1]} (height x width); to be measured, a picture must have "
            f"{BLOCK} pixels a side once it is cut to multiples of {factor}"
        )
    return middle
