"""Images to latent files and back, a file or a folder at a time: what ``vaedeploy encode`` and ``decode`` do."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vaedeploy.bundle.stored import refuse_in_bundle
from vaedeploy.errors import (
    ImageError,
    InputError,
    LatentError,
    MemoryLimitError,
    OutputError,
    SizeError,
    VaedeployError,
)
from vaedeploy.images.files import (
    WRITE_OPTIONS,
    check_image_name,
    files_in,
    format_of,
    image_suffixes,
    read_image,
    write_image,
)
from vaedeploy.images.latents import LatentFile, read_latent, write_latent
from vaedeploy.images.opacity import Color, check_background, flattened, has_opacity, with_opacity
from vaedeploy.runtime import VAE
from vaedeploy.system.atomic import check_place, clear_drafts, transient_folder
from vaedeploy.system.missing import missing
from vaedeploy.system.oserrors import reason
from vaedeploy.system.places import exists, is_folder
from vaedeploy.system.progress import Progress, silent, unmeasured
from vaedeploy.values.latent import RGBA
from vaedeploy.values.words import counted

LATENT = ".safetensors"

log = logging.getLogger(__name__)


class OtherVAEWarning(UserWarning):
    """A latent is decoded by a VAE other than the one that encoded it."""


@dataclass(frozen=True)
class ConvertedFile:
    """A file that was read, the file that was written for it, and the seconds from the one to the other."""

    source: Path
    written: Path
    seconds: float


@dataclass(frozen=True)
class Converted:
    """The result of a conversion: the files that were written, and a line for each file that could not be converted."""

    files: tuple[ConvertedFile, ...]
    failures: tuple[str, ...]

    @property
    def written(self) -> tuple[Path, ...]:
        """The paths of the files that were written."""
        return tuple(file.written for file in self.files)

    def check(self) -> None:
        """Raise InputError, listing the failures, if there are any."""
        if self.failures:
            total = len(self.failures) + len(self.files)
            lines = "".join(f"\n  {failure}" for failure in self.failures)
            others = "; the others are written" if self.files else ""
            raise InputError(f"{len(self.failures)} of {counted(total, 'file')} failed{others}:{lines}")


def encode_files(
    vae: VAE,
    source: Path,
    out: Path,
    *,
    sample: bool,
    seed: int | None,
    pad: bool,
    background: Color | None = None,
    progress: Progress = silent,
) -> Converted:
    """Encode an image file to the latent file ``out``, or a folder's images to latent files in the folder ``out``.

    >>> with vd.VAE("mse840k") as vae:
    ...     encode_files(vae, Path("photos"), Path("latents"), sample=False, seed=None, pad=True).check()

    vae, sample, seed, pad: see ``VAE.encode``. With ``sample``, each image draws from ``seed`` anew, so that its latent
        does not depend on which other images are in the folder.
    source: an image file, or a folder. out: a name that ends in .safetensors, or a folder, which is made if need be.
    background: the colour behind transparent images, RGB, 0 to 255. A VAE of RGBA images has no use for it.
    progress: reports each file with its size, and how many are done, see ``Progress``.

    A VAE of RGBA images takes images without an alpha channel as opaque, and the log says so once. Without a
    ``background``, a VAE of RGB images refuses transparent ones (ImageError).

    Where ``source`` is a file, its failure is raised (any VaedeployError). In a folder the other files are still
    converted, and the failures are returned. Raises InputError for a folder without images and for a useless
    ``background``, and OutputError for an ``out`` that cannot be written to.
    """
    vae_info = vae.manifest.vae
    rgba = vae.latent.image_channels == RGBA
    check_background(background, rgba)
    said = False

    def encode(file: Path, target: Path) -> None:
        nonlocal said
        if file.suffix == LATENT:
            raise ImageError(f"{file} is not an image: {LATENT} files hold latents, which vaedeploy decode takes")
        image = read_image(file, opacity=True)
        if not rgba:
            image = flattened(image, background, file)
        elif not has_opacity(image):
            image = with_opacity(image)
            if not said:
                log.warning("%s has no alpha channel; it and all others like it are encoded as opaque", file)
            said = True
        size = (image.shape[0], image.shape[1])
        with _told("Encoding", source, file, size, progress):
            latent = vae.encode(image, sample=sample, seed=seed, pad=pad)
        write_latent(target, LatentFile(latent, vae_info.identity, vae_info.name, vae.latent, size))

    _check_places(source, out, (LATENT,), LATENT)
    if not is_folder(source) and out.suffix != LATENT:
        raise OutputError(f"cannot write a latent to {out}: give a name that ends in {LATENT}")
    return _convert(source, out, image_suffixes(), LATENT, encode, f"Encoding {source}", progress)


def decode_files(vae: VAE, source: Path, out: Path, *, progress: Progress = silent) -> Converted:
    """Decode a latent file to the image file ``out``, or a folder's latent files to PNG files in the folder ``out``.

    >>> with vd.VAE("mse840k") as vae:
    ...     decode_files(vae, Path("latents"), Path("images")).check()

    Images are cropped to the size that the latent file carries.

    vae: decodes the latents. source: a .safetensors file that holds one latent, or a folder.
    out: an image's name, whose suffix chooses the format, or a folder, which is made if need be. RGBA images need a
        format that holds opacity: PNG, WebP or TIFF.
    progress: reports each file with its size, and how many are done, see ``Progress``.

    Warns (OtherVAEWarning) where another VAE encoded a latent. Where ``source`` is a file, its failure is raised (any
    VaedeployError). In a folder the other files are still converted, and the failures are returned. Raises InputError
    for a folder without latent files, and OutputError for an ``out`` that cannot be written to.
    """
    vae_info = vae.manifest.vae

    def decode(file: Path, target: Path) -> None:
        if file.suffix != LATENT and (form := format_of(file)):
            raise LatentError(f"{file} is an image ({form}), not a latent file; vaedeploy encode takes images")
        read = read_latent(file)
        if len(read.latent) != 1:
            raise LatentError(
                f"{file} holds {len(read.latent)} latents; a picture takes one. Save each to its own file"
            )
        if other := read.told_apart(vae_info.identity, vae_info.name, vae.latent):
            # The text leaves out the file's name: Python shows equal warnings once, so a folder gives one warning.
            warnings.warn(other, OtherVAEWarning, stacklevel=2)
        height, width = (side * vae.latent.factor for side in read.latent.shape[2:])
        with _told("Decoding", source, file, read.size or (height, width), progress):
            image = vae.decode(read.latent, size=read.size)[0]
        write_image(target, image)

    _check_places(source, out, tuple(WRITE_OPTIONS), ".png")
    if not is_folder(source):
        check_image_name(out, vae.latent.image_channels)
    return _convert(source, out, (LATENT,), ".png", decode, f"Decoding {source}", progress)


@contextmanager
def _told(doing: str, source: Path, file: Path, size: tuple[int, int], progress: Progress) -> Iterator[None]:
    """Context of the call for ``file``, an image of (H, W) pixels: a step of the progress that names it and its size.
    Where ``source`` is a folder, it is within the step for all files. An error about the size names the file.
    """
    what = f"{file.name}, {size[0]}x{size[1]}"
    try:
        if is_folder(source):
            with unmeasured(progress, what):
                yield
        else:
            progress(f"{doing} {what}", 0, 1)
            yield
            progress(f"{doing} {what}", 1, 1)
    except (SizeError, MemoryLimitError) as error:
        raise type(error)(f"{file}: {error}") from error


def _check_places(source: Path, out: Path, suffixes: Iterable[str], suffix: str) -> None:
    """Raise InputError where there is no ``source``, and OutputError where ``out`` cannot be written, before any work.

    suffixes: those that a written file may have. suffix: the one that files in a folder get.
    """
    if not exists(source):
        raise InputError(missing("file or folder", source))
    refuse_in_bundle(out)
    if is_folder(source):
        if out.suffix.lower() in suffixes and not is_folder(out):
            raise OutputError(f"{source} is a folder, and {out} is a file's name: give a folder to write to with -o")
    elif is_folder(out):
        raise OutputError(f"{out} is a folder and {source} is not: name the file to write, {out / source.stem}{suffix}")
    else:
        check_place(out)


def _convert(
    source: Path,
    out: Path,
    suffixes: tuple[str, ...],
    suffix: str,
    work: Callable[[Path, Path], None],
    what: str,
    progress: Progress,
) -> Converted:
    """Call ``work(source, out)``, or do so for every file of a folder.

    suffixes: those of the files to read. suffix: that of the files to write into a folder. what: the folder's step, for
    ``progress``.
    """
    if is_folder(source):
        pairs = _pairs(source, out, suffixes, suffix)
        with _output_folder(out):
            return _convert_all(pairs, work, what, progress)
    return Converted((_timed(work, source, out),), ())


def _timed(work: Callable[[Path, Path], None], source: Path, out: Path) -> ConvertedFile:
    begun = time.monotonic()
    work(source, out)
    return ConvertedFile(source, out, time.monotonic() - begun)


def _convert_all(
    pairs: list[tuple[Path, Path]], work: Callable[[Path, Path], None], what: str, progress: Progress
) -> Converted:
    converted: list[ConvertedFile] = []
    failures: list[str] = []
    for done, (file, target) in enumerate(pairs):
        progress(what, done, len(pairs))
        try:
            converted.append(_timed(work, file, target))
        except VaedeployError as error:
            failures.append(str(error) if str(file) in str(error) else f"{file}: {error}")
    progress(what, len(pairs), len(pairs))
    return Converted(tuple(converted), tuple(failures))


def _pairs(source: Path, out: Path, suffixes: tuple[str, ...], suffix: str) -> list[tuple[Path, Path]]:
    """The files in the folder ``source`` that have one of ``suffixes``, each with the file to write for it."""
    try:
        files = files_in(source, suffixes)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {reason(error)}") from error
    if not files:
        raise InputError(f"there is nothing to convert in {source}: no file there ends in {', '.join(suffixes)}")
    taken: dict[Path, Path] = {}
    for file in files:
        target = out / (file.stem + suffix)
        if target in taken:
            raise InputError(f"{taken[target].name} and {file.name} would both be written to {target}; rename one")
        taken[target] = file
    return [(file, target) for target, file in taken.items()]


@contextmanager
def _output_folder(out: Path) -> Iterator[None]:
    """Context that makes the folder ``out``, and removes it again if nothing was written to it. Half-written files that
    killed processes left there are removed.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(transient_folder(out))
        except OSError as error:
            raise OutputError(f"cannot make the folder {out}: {reason(error)}. Choose another place with -o") from error
        clear_drafts(out)
        yield
