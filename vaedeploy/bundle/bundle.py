"""A bundle: the directory that holds a VAE's graphs, what proves them, and the manifest that says so.

``docs/bundle-format.md`` specifies it. Every file in a bundle has its sha256 in the manifest, and nothing in the
manifest can name a path outside of it. ``draft`` makes new ones.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vaedeploy.bundle.manifest import (
    NAME,
    EngineInfo,
    FileInfo,
    Manifest,
    VaeInfo,
    Verification,
    decode_manifest,
    encode_manifest,
    path_fault,
)
from vaedeploy.errors import BundleError, OutputError
from vaedeploy.system.atomic import clear_leftovers, draft_name, move_file, share, write_file
from vaedeploy.system.lock import lock
from vaedeploy.system.oserrors import advice, reason
from vaedeploy.values.kinds import Form, Part
from vaedeploy.values.origin import Origin

__all__ = [
    "Bundle",
    "BundleEdit",
    "EngineInfo",
    "FileInfo",
    "Form",
    "Manifest",
    "Origin",
    "Part",
    "VaeInfo",
    "Verification",
    "check_bundle",
    "edit_bundle",
]

PREVIOUS = "previous"
"""Where a bundle keeps the one that it was before a swap."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, as it was when it was opened: to ask what it holds. ``VAE`` runs it.

    path: its folder. manifest: what its ``bundle.json`` says: VAE, latent contract, files, engines, verification.
    """

    path: Path
    manifest: Manifest

    def __repr__(self) -> str:
        state = "verified" if self.verified else "unverified"
        return f"Bundle({str(self.path)!r}, VAE {self.manifest.vae.name}, {self.manifest.precision}, {state})"

    @classmethod
    def open(cls, path: str | Path, verify_hashes: bool = True) -> Bundle:
        """Read the manifest and prove that every file it names is there, has its size and, unless
        ``verify_hashes`` is False, its sha256. Engines and what a swap kept are proved where they are used: a bundle
        serves without them, and engines can be built again.

        Raises BundleError, listing all that is wrong.
        """
        if not isinstance(path, str | os.PathLike):
            raise BundleError(f"the bundle is of type {type(path).__name__}; give its folder (of a Bundle, .path)")
        bundle = cls(Path(path), _read_manifest(Path(path)))
        needed = (name for name in bundle.manifest.files if not bundle._is_spare(name))
        bundle._refuse(bundle._damages(needed, verify_hashes))
        return bundle

    @property
    def verified(self) -> bool:
        """Whether the last verification passed."""
        return self.manifest.verification is not None and self.manifest.verification.passed

    def check(self) -> None:
        """Raise BundleError, listing all that is wrong, where any file is missing, altered or not in the manifest."""
        self._refuse(self._damages(self.manifest.files), _surplus(self))

    def damage(self, name: str, verify_hash: bool = True) -> str | None:
        """How a file differs from what the manifest says of it, in words that follow its name; None where it does
        not.
        """
        path, told = self.path / name, self.manifest.files[name]
        try:
            if fault := _link_fault(self.path, name):
                return fault
            if not path.is_file():
                return "is missing"
            if (size := path.stat().st_size) != told.bytes:
                return f"has {size:,} bytes where {NAME} says {told.bytes:,}"
            if verify_hash and (found := file_info(path).sha256) != told.sha256:
                return f"is altered: its sha256 is {found} where {NAME} says {told.sha256}"
        except OSError as error:
            return f"cannot be read: {reason(error)}"
        return None

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

        Raises as ``BundleEdit.put`` does, and OutputError where another process writes to the bundle.
        """
        with edit_bundle(self) as edit:
            return edit.put(verification=verification, files=files)

    def _is_spare(self, name: str) -> bool:
        return name in self.manifest.engines or name.startswith(f"{PREVIOUS}/")

    def _damages(self, names: Iterable[str], verify_hashes: bool = True) -> dict[str, str]:
        """Name -> ``damage``, of those that have any."""
        found = ((name, self.damage(name, verify_hashes)) for name in names)
        return {name: damage for name, damage in found if damage is not None}

    def _refuse(self, damages: Mapping[str, str], surplus: Sequence[str] = ()) -> None:
        """Raise BundleError where there is something in either, with the least that would mend it."""
        problems = [f"{name} {damage}" for name, damage in damages.items()] + [*surplus]
        if not problems:
            return
        what = problems[0] if len(problems) == 1 else "\n  " + "\n  ".join(problems) + "\n"
        engines = [name for name in damages if name in self.manifest.engines]
        state = "is damaged" if damages else "is whole, but has files beside its own"
        if not damages:
            again = "Move them elsewhere"
        elif len(engines) == len(problems):
            commands = dict.fromkeys(self.manifest.build_command(self.path, name) for name in engines)
            again = f"Build what is damaged again: {'; '.join(commands)}"
        else:
            again = f"Export it again: {self.manifest.export_command(self.path)}"
        raise BundleError(f"bundle {self.path} {state}: {what}{'. ' if len(problems) == 1 else ''}{again}")


def as_bundle(bundle: Bundle | str | Path) -> Bundle:
    """The bundle itself, or the one that ``Bundle.open`` opens at a path."""
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)


def check_bundle(path: str | Path) -> Bundle:
    """Open a bundle and prove every file in it; a file that the manifest does not name is a fault as well.

    Raises BundleError, listing all that is wrong.
    """
    bundle = Bundle(Path(path), _read_manifest(Path(path)))
    bundle.check()
    return bundle


@dataclass
class BundleEdit:
    """The right to write to a bundle, while ``edit_bundle`` holds it, and an empty folder on the same disk."""

    bundle: Bundle
    draft: Path

    def put(
        self,
        *,
        verification: Verification | None = None,
        files: Mapping[str, bytes | Path] | None = None,
        engines: Mapping[str, EngineInfo] | None = None,
        contents: Mapping[Part, str] | None = None,
    ) -> Bundle:
        """Put ``files`` into the bundle and change its manifest; returns the new state. What is None stays as it is.

        files: path in the bundle -> bytes, or a file under ``draft``, which is moved. engines: what those of them are
        that are engines. contents: see ``Manifest``; added to those that are there.

        A run that is killed in here leaves a bundle that opens. Raises OutputError where the bundle cannot be
        written to, and BundleError for a path that is no place for a file of it.
        """
        files = dict(files or {})
        path = self.bundle.path
        graphs = {name for forms in self.bundle.manifest.graphs.values() for name in forms.values()}
        for name in files:
            fault = "is a graph" if name in graphs else path_fault(name) or _link_fault(path, name)
            if fault:
                raise BundleError(f"cannot put {name!r} into bundle {path}: it {fault}")
        with naming_bundle(path):
            manifest = _read_manifest(path)
            kept = {name: info for name, info in manifest.files.items() if name not in files}
            known = {name: engine for name, engine in manifest.engines.items() if name not in files}
            if len(kept) < len(manifest.files):
                # While a file is being replaced neither its old hash nor its new one would be true.
                told = msgspec.structs.replace(manifest, files=kept, engines=known)
                write_file(path / NAME, encode_manifest(told))
            for name, data in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(data, bytes):
                    write_file(path / name, data)
                else:
                    share(data, path)
                    move_file(data, path / name)
                kept[name] = file_info(path / name, sync=True)
            changed = msgspec.structs.replace(
                manifest,
                files=kept,
                engines=known | dict(engines or {}),
                contents=manifest.contents | dict(contents or {}),
                verification=verification or manifest.verification,
            )
            write_file(path / NAME, encode_manifest(changed))
        self.bundle = Bundle(path, changed)
        return self.bundle


@contextmanager
def edit_bundle(bundle: Bundle) -> Iterator[BundleEdit]:
    """Hold the right to write to a bundle. Raises OutputError where another process has it, or the place cannot be
    written to.
    """
    place = bundle.path.resolve()
    with writing(place, bundle.path, "Wait until it is done"):
        with naming_bundle(bundle.path):
            clear_leftovers(place)
            draft = draft_name(place)
            draft.mkdir()
        try:
            yield BundleEdit(Bundle(bundle.path, _read_manifest(bundle.path)), draft)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def writing(place: Path, out: Path, otherwise: str) -> Iterator[None]:
    """Hold the right to write the bundle at ``place``; it lapses by itself when the process that has it dies.

    otherwise: what to do where another process has it.
    """
    with ExitStack() as stack:
        with naming_bundle(out):
            free = stack.enter_context(lock(place.with_name(f".{place.name}.lock")))
        if not free:
            raise OutputError(f"cannot write bundle {out}: another process is writing it now. {otherwise}")
        yield


@contextmanager
def naming_bundle(out: Path) -> Iterator[None]:
    """Turn an error of the operating system into one that names the bundle."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write bundle {out}: {reason(error)}. {advice(error)}") from error


def _read_manifest(path: Path) -> Manifest:
    make = f"Make a bundle with: vaedeploy export --vae NAME --out {path}"
    if not path.exists():
        raise BundleError(f"there is no bundle at {path}. {make}")
    if not path.is_dir():
        raise BundleError(f"{path} is a file; a bundle is a folder with a {NAME} in it. Give the folder")
    try:
        data = (path / NAME).read_bytes()
    except FileNotFoundError as error:
        if any(path.iterdir()):  # where nothing is, one can be made
            make = "Give a bundle's folder, or make one in another place: vaedeploy export --vae NAME --out PLACE"
        raise BundleError(f"{path} is not a bundle: it has no {NAME}. {make}") from error
    except OSError as error:
        raise BundleError(f"bundle {path}: {NAME} cannot be read: {reason(error)}") from error
    return decode_manifest(data, path)


def _surplus(bundle: Bundle) -> list[str]:
    known = {NAME, *bundle.manifest.files}
    found = sorted(p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if not p.is_dir())
    return [f"{name} is not in {NAME}" for name in found if name not in known]


def _link_fault(bundle: Path, name: str) -> str | None:
    inside = (bundle / name).resolve().is_relative_to(bundle.resolve())
    return None if inside else "leaves the bundle through a link"


def file_info(path: Path, sync: bool = False) -> FileInfo:
    """A file's size and sha256. sync: make it last through a power cut first."""
    if sync:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    with path.open("rb") as file:
        return FileInfo(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
