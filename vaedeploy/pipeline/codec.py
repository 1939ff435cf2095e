"""Pictures to latent files and back, a file or a folder at a time: what ``encode`` and ``decode`` do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vaedeploy.errors import InputError, LatentError, OutputError, SizeError, VaedeployError
from vaedeploy.images.files import WRITE_OPTIONS, check_image_name, image_suffixes, read_image, write_image
from vaedeploy.images.latents import LatentFile, read_latent, write_latent
from vaedeploy.runtime import VAE
from vaedeploy.system.atomic import check_place, transient_folder
from vaedeploy.system.oserrors import reason
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.latent import LatentSpec

LATENT = ".safetensors"


class OtherVAEWarning(UserWarning):
    """A latent is decoded by another VAE than the one that made it."""


@dataclass(frozen=True)
class Converted:
    """The files that were written, and a line for each that could not be converted."""

    written: tuple[Path, ...]
    failures: tuple[str, ...]

    def check(self) -> None:
        """Raise InputError, listing the failures, if there are any."""
        if self.failures:
            total = len(self.failures) + len(self.written)
            lines = "".join(f"\n  {failure}" for failure in self.failures)
            raise InputError(f"{len(self.failures)} of {total} files failed; the others are written:{lines}")


def encode_files(
    vae: VAE, source: Path, out: Path, *, sample: bool, seed: int | None, pad: bool, progress: Progress = silent
) -> Converted:
    """Encode a picture to the latent file ``out``, or every picture in a folder to a latent file in the folder ``out``.

    With ``sample``, each picture draws from ``seed`` anew, so that it does not matter which others lie beside it.
    A file's failure is raised (any VaedeployError); in a folder the others go on, and the failures are returned.
    Raises InputError for a folder without pictures, OutputError for an ``out`` that cannot be written to.
    """
    own = vae.manifest.vae

    def encode(picture: Path, target: Path) -> None:
        image = read_image(picture)
        try:
            latent = vae.encode(image, sample=sample, seed=seed, pad=pad)
        except SizeError as error:
            raise SizeError(f"{picture}: {error}") from error
        size = (image.shape[0], image.shape[1])
        write_latent(target, LatentFile(latent, own.identity, own.name, vae.latent, size))

    _check_places(source, out, (LATENT,), LATENT)
    if not source.is_dir() and out.suffix != LATENT:
        raise OutputError(f"cannot write a latent to {out}: give a name that ends in {LATENT}")
    return _convert(source, out, image_suffixes(), LATENT, encode, f"Encoding {source}", progress)


def decode_files(vae: VAE, source: Path, out: Path, *, progress: Progress = silent) -> Converted:
    """Decode a latent file to the picture ``out``, or every one in a folder to a PNG in the folder ``out``.

    Pictures are cropped to the size that the latent file carries. Warns where another VAE made the latent.
    A file's failure is raised (any VaedeployError); in a folder the others go on, and the failures are returned.
    Raises InputError for a folder without latent files, OutputError for an ``out`` that cannot be written to.
    """
    own = vae.manifest.vae

    def decode(file: Path, target: Path) -> None:
        read = read_latent(file)
        if len(read.latent) != 1:
            raise LatentError(
                f"{file} holds {len(read.latent)} latents; a picture takes one. Save each to its own file"
            )
        if read.vae_identity not in (None, own.identity):
            differ = _differing(read.spec, vae.latent) if read.spec else ""
            # Without the file's name, so that a folder of them is told once.
            warnings.warn(
                f"{read.vae_name or 'another VAE'} ({_short(read.vae_identity)}) made the latent, "
                f"{own.name} ({_short(own.identity)}) decodes it{differ}",
                OtherVAEWarning,
                stacklevel=2,
            )
        write_image(target, vae.decode(read.latent, size=read.size)[0])

    _check_places(source, out, tuple(WRITE_OPTIONS), ".png")
    if not source.is_dir():
        check_image_name(out)
    return _convert(source, out, (LATENT,), ".png", decode, f"Decoding {source}", progress)


def _short(identity: str | None) -> str:
    return (identity or "")[:12]


def _differing(made: LatentSpec, here: LatentSpec) -> str:
    """In what two latent contracts differ, to be put after a sentence; empty where they do not."""
    told = [f"{field} is {there} there and {ours} here" for field, there, ours in made.differences(here)]
    return f"; their latent contracts differ: {', '.join(told)}" if told else ""


def _check_places(source: Path, out: Path, suffixes: Iterable[str], suffix: str) -> None:
    """Raise what speaks against reading ``source`` and writing to ``out``, before any work. suffixes: of files that
    are written, and suffix the one of those that a folder gets.
    """
    if not source.exists():
        raise InputError(f"there is no file {source}, and no folder of that name")
    if source.is_dir():
        if out.suffix.lower() in suffixes and not out.is_dir():
            raise OutputError(f"{source} is a folder, and {out} is a file's name: give a folder to write to with -o")
    elif out.is_dir():
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
    if source.is_dir():
        pairs = _pairs(source, out, suffixes, suffix)
        with _folder(out):
            return _convert_all(pairs, work, what, progress)
    progress(what, 0, 1)
    work(source, out)
    progress(what, 1, 1)
    return Converted((out,), ())


def _convert_all(
    pairs: list[tuple[Path, Path]], work: Callable[[Path, Path], None], what: str, progress: Progress
) -> Converted:
    written: list[Path] = []
    failures: list[str] = []
    for done, (file, target) in enumerate(pairs):
        progress(what, done, len(pairs))
        try:
            work(file, target)
        except VaedeployError as error:
            failures.append(str(error) if str(file) in str(error) else f"{file}: {error}")
        else:
            written.append(target)
    progress(what, len(pairs), len(pairs))
    return Converted(tuple(written), tuple(failures))


def _pairs(source: Path, out: Path, suffixes: tuple[str, ...], suffix: str) -> list[tuple[Path, Path]]:
    files = sorted(f for f in source.iterdir() if _wanted(f, suffixes))
    if not files:
        raise InputError(f"there is nothing to convert in {source}: no file there ends in {', '.join(suffixes)}")
    taken: dict[Path, Path] = {}
    for file in files:
        target = out / (file.stem + suffix)
        if target in taken:
            raise InputError(f"{taken[target].name} and {file.name} would both be written to {target}; rename one")
        taken[target] = file
    return [(file, target) for target, file in taken.items()]


def _wanted(file: Path, suffixes: tuple[str, ...]) -> bool:
    return file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Make the folder ``out``, and remove it again if nothing was written to it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(transient_folder(out))
        except OSError as error:
            raise OutputError(f"cannot make the folder {out}: {reason(error)}. Choose another place with -o") from error
        yield
