"""A bundle: the directory that holds a VAE's graphs, what proves them, and the manifest that says so.

``docs/bundle-format.md`` specifies it. A bundle is made in a temporary directory beside its place and renamed into
it, every file in it has its sha256 in the manifest, and nothing in the manifest can name a path outside of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vaedeploy.atomic import advice, clear_leftovers, draft_name, is_full, lock, reason, replace_directory, write_file
from vaedeploy.errors import BundleError, OutputError
from vaedeploy.manifest import (
    NAME,
    FileInfo,
    Form,
    Manifest,
    Origin,
    Part,
    VaeInfo,
    Verification,
    check_manifest,
    decode_manifest,
    encode_manifest,
    path_fault,
)

__all__ = [
    "Bundle",
    "BundleDraft",
    "FileInfo",
    "Form",
    "Manifest",
    "Origin",
    "Part",
    "VaeInfo",
    "Verification",
    "check_bundle",
    "create_bundle",
]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: where it is, and its manifest as it was when it was opened."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, verify_hashes: bool = True) -> Bundle:
        """Read the manifest and prove that every file it names is there, has its size and, unless
        ``verify_hashes`` is False, its sha256.

        Raises BundleError, listing all that is wrong.
        """
        bundle = cls(Path(path), _read_manifest(Path(path)))
        bundle._refuse(_damage(bundle, verify_hashes))
        return bundle

    @property
    def verified(self) -> bool:
        """Whether the last verification passed."""
        return self.manifest.verification is not None and self.manifest.verification.passed

    def check(self) -> None:
        """Raise BundleError, listing all that is wrong, where a file is missing, altered or not in the manifest."""
        self._refuse(_damage(self, verify_hashes=True) + _surplus(self))

    def graph(self, part: Part, form: Form = "portable") -> Path:
        """The file of a part's graph in ``form``, or in the portable form where it has no other."""
        forms = self.manifest.graphs[part]
        return self.path / forms.get(form, forms["portable"])

    def file(self, name: str) -> Path:
        """The path of a file that the manifest names. Raises BundleError where it names none such."""
        if name not in self.manifest.files:
            raise BundleError(f"bundle {self.path} has no {name}; it has {', '.join(sorted(self.manifest.files))}")
        return self.path / name

    def update(self, *, verification: Verification | None = None, files: Mapping[str, bytes] | None = None) -> Bundle:
        """Put ``files`` into the bundle and set its verification summary (None: leave it); returns the new state.

        A run that is killed in here leaves a bundle that opens. Raises OutputError where the bundle cannot be
        written to or another process writes to it, and BundleError for a path that is no place for a file of it.
        """
        files = dict(files or {})
        graphs = {name for forms in self.manifest.graphs.values() for name in forms.values()}
        for name in files:
            fault = "is a graph" if name in graphs else path_fault(name) or _link_fault(self.path, name)
            if fault:
                raise BundleError(f"cannot put {name!r} into bundle {self.path}: it {fault}")
        with _writing(self.path.resolve(), self.path):
            manifest = _read_manifest(self.path)
            changes = {} if verification is None else {"verification": verification}
            kept = {name: info for name, info in manifest.files.items() if name not in files}
            if len(kept) < len(manifest.files):
                # While a file is being replaced neither its old hash nor its new one would be true.
                write_file(self.path / NAME, encode_manifest(msgspec.structs.replace(manifest, files=kept)))
            for name, data in files.items():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                write_file(self.path / name, data)
                kept[name] = FileInfo(hashlib.sha256(data).hexdigest(), len(data))
            updated = Bundle(self.path, msgspec.structs.replace(manifest, files=kept, **changes))
            write_file(self.path / NAME, encode_manifest(updated.manifest))
        return updated

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            what = problems[0] if len(problems) == 1 else "\n  " + "\n  ".join(problems) + "\n"
            again = f"Export it again: {self.manifest.export_command(self.path)}"
            raise BundleError(f"bundle {self.path} is damaged: {what}{'. ' if len(problems) == 1 else ''}{again}")


def check_bundle(path: str | Path) -> Bundle:
    """Open a bundle and prove every file in it; a file that the manifest does not name is a fault as well.

    Raises BundleError, listing all that is wrong.
    """
    bundle = Bundle(Path(path), _read_manifest(Path(path)))
    bundle.check()
    return bundle


@dataclass
class BundleDraft:
    """A bundle that is being made. Write its files under ``path``, then call ``finish``."""

    path: Path
    out: Path
    place: Path
    force: bool

    def finish(self, manifest: Manifest) -> Bundle:
        """Add the size and sha256 of every file under ``path`` to ``manifest``, write it, and put the bundle in its
        place in one step. Raises BundleError for a manifest that contradicts itself, OutputError where the place
        cannot be written to.
        """
        files = {}
        rights = self.path.stat().st_mode & 0o666
        for file in sorted(file for file in self.path.rglob("*") if not file.is_dir()):
            # Some libraries write for the owner alone; a bundle is for everyone the umask allows.
            file.chmod(rights)
            files[file.relative_to(self.path).as_posix()] = _info(file, sync=True)
        manifest = msgspec.structs.replace(manifest, files=files)
        check_manifest(manifest, self.out)
        write_file(self.path / NAME, encode_manifest(manifest))
        _check_free(self.place, self.out, self.force)
        with _told_of(self.out):
            replace_directory(self.path, self.place)
        return Bundle(self.out, manifest)


@contextmanager
def create_bundle(out: str | Path, force: bool = False) -> Iterator[BundleDraft]:
    """Make a bundle at ``out``: write its files under the draft's ``path``, then call the draft's ``finish``.

    Where anything is raised inside, or ``finish`` is not called, neither the draft is left nor ``out`` changed.
    Raises OutputError where ``out`` exists (``force`` replaces a bundle, and nothing else), cannot be written to,
    is being written by another process, or the disk is full.
    """
    out = Path(out)
    place = out.resolve()
    if not place.name:
        raise OutputError(f"{out} cannot be a bundle. Choose another place with --out")
    with _parents(place.parent, out), _writing(place, out):
        with _told_of(out):
            clear_leftovers(place)
        _check_free(place, out, force)
        draft = BundleDraft(draft_name(place), out, place, force)
        try:
            with _told_of(out):
                draft.path.mkdir()
            yield draft
        except BaseException as error:
            if isinstance(error, Exception) and is_full(error):
                raise OutputError(
                    f"cannot write bundle {out}: no room is left there. Nothing was kept. "
                    "Free space, or choose another place with --out"
                ) from error
            raise
        finally:
            shutil.rmtree(draft.path, ignore_errors=True)


@contextmanager
def _parents(folder: Path, out: Path) -> Iterator[None]:
    """Make the folders that a bundle is to lie in, and remove those again that end up with nothing in them."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        with _told_of(out):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for made in missing:
            with suppress(OSError):
                made.rmdir()


@contextmanager
def _writing(place: Path, out: Path) -> Iterator[None]:
    """Hold the right to write the bundle at ``place``; it lapses by itself when the process that has it dies."""
    with ExitStack() as stack:
        with _told_of(out):
            free = stack.enter_context(lock(place.with_name(f".{place.name}.lock")))
        if not free:
            raise OutputError(
                f"cannot write bundle {out}: another process is writing it now. Wait until it is done, or choose "
                "another place with --out"
            )
        yield


@contextmanager
def _told_of(out: Path) -> Iterator[None]:
    """Turn an error of the operating system into one that names the bundle."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write bundle {out}: {reason(error)}. {advice(error)}") from error


def _check_free(place: Path, out: Path, force: bool) -> None:
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    if not _is_bundle(place):
        raise OutputError(f"{out} exists and is not a bundle; it is left as it is. Choose another place with --out")
    if not force:
        raise OutputError(f"{out} exists already. Replace it with --force, or choose another place with --out")


def _is_bundle(place: Path) -> bool:
    """Whether ``place`` was a bundle once, in whatever state it is now. (Others call files bundle.json too.)"""
    try:
        with (place / NAME).open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return b'"format"' in head and b'"vaedeploy"' in head


def _read_manifest(path: Path) -> Manifest:
    make = f"Make a bundle with: vaedeploy export --vae NAME --out {path}"
    if not path.exists():
        raise BundleError(f"there is no bundle at {path}. {make}")
    if not path.is_dir():
        raise BundleError(f"{path} is a file; a bundle is a folder with a {NAME} in it. Give the folder")
    try:
        data = (path / NAME).read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is not a bundle: it has no {NAME}. {make}") from error
    except OSError as error:
        raise BundleError(f"bundle {path}: {NAME} cannot be read: {reason(error)}") from error
    return decode_manifest(data, path)


def _damage(bundle: Bundle, verify_hashes: bool) -> list[str]:
    """What differs between the manifest's files and those on disk, a sentence each."""
    problems = []
    for name, told in bundle.manifest.files.items():
        path = bundle.path / name
        try:
            if fault := _link_fault(bundle.path, name):
                problems.append(f"{name} {fault}")
            elif not path.is_file():
                problems.append(f"{name} is missing")
            elif (size := path.stat().st_size) != told.bytes:
                problems.append(f"{name} has {size:,} bytes where {NAME} says {told.bytes:,}")
            elif verify_hashes and (found := _info(path).sha256) != told.sha256:
                problems.append(f"{name} is altered: its sha256 is {found} where {NAME} says {told.sha256}")
        except OSError as error:
            problems.append(f"{name} cannot be read: {reason(error)}")
    return problems


def _surplus(bundle: Bundle) -> list[str]:
    known = {NAME, *bundle.manifest.files}
    found = sorted(p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if not p.is_dir())
    return [f"{name} is not in {NAME}" for name in found if name not in known]


def _link_fault(bundle: Path, name: str) -> str | None:
    inside = (bundle / name).resolve().is_relative_to(bundle.resolve())
    return None if inside else "leaves the bundle through a link"


def _info(path: Path, sync: bool = False) -> FileInfo:
    if sync:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    with path.open("rb") as file:
        return FileInfo(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
