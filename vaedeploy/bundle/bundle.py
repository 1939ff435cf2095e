"""A bundle: the folder with a VAE's graphs, the results that they were verified against, and a manifest of all files.

    >>> bundle = Bundle.open("mse840k")
    >>> bundle.graph("decoder")
    PosixPath('mse840k/decoder.onnx')

``docs/bundle-format.md`` specifies the format. The manifest has the sha256 of every file in the bundle, and a manifest
that names a path outside the bundle is refused. ``create.create_bundle`` makes new bundles.
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
"""The folder in which a bundle whose VAE was swapped keeps the bundle that it was first."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, as it was when it was opened. This class reads and checks it; ``VAE`` runs it.

    path: its folder. manifest: the contents of ``bundle.json``: VAE, latent contract, files, engines, verification.
    """

    path: Path
    manifest: Manifest

    def __repr__(self) -> str:
        state = "verified" if self.verified else "unverified"
        return f"Bundle({str(self.path)!r}, VAE {self.manifest.vae.name}, {self.manifest.precision}, {state})"

    @classmethod
    def open(cls, path: str | Path, verify_hashes: bool = True) -> Bundle:
        """Open a bundle: read its manifest and check its files.

        Every file that the manifest names must exist and have the size and, unless ``verify_hashes`` is False, the
        sha256 that the manifest states. Engines and the files that a swap kept are not checked here but where they are
        used: a bundle can be run without them, and engines can be built again.

        Raises BundleError, which lists everything that is wrong.
        """
        if not isinstance(path, str | os.PathLike):
            raise BundleError(f"the bundle is of type {type(path).__name__}; give its folder (of a Bundle, .path)")
        bundle = cls(Path(path), _read_manifest(Path(path)))
        needed = (name for name in bundle.manifest.files if not bundle._is_optional(name))
        bundle._refuse(bundle._damages(needed, verify_hashes))
        return bundle

    @property
    def verified(self) -> bool:
        """Whether the last verification passed."""
        return self.manifest.verification is not None and self.manifest.verification.passed

    def check(self) -> None:
        """Raise BundleError, which lists everything wrong, if any file is missing, altered or not in the manifest."""
        self._refuse(self._damages(self.manifest.files), _surplus(self))

    def damage(self, name: str, verify_hash: bool = True) -> str | None:
        """How a file differs from what the manifest states, as words that follow the file's name: ``is missing``.

        None if it does not differ. verify_hash: False to skip the sha256.
        """
        path, expected = self.path / name, self.manifest.files[name]
        try:
            if fault := _link_fault(self.path, name):
                return fault
            if not path.is_file():
                return "is missing"
            if (size := path.stat().st_size) != expected.bytes:
                return f"has {size:,} bytes where {NAME} says {expected.bytes:,}"
            if verify_hash and (sha256 := file_info(path).sha256) != expected.sha256:
                return f"is altered: its sha256 is {sha256} where {NAME} says {expected.sha256}"
        except OSError as error:
            return f"cannot be read: {reason(error)}"
        return None

    def graph(self, part: Part, form: Form = "portable") -> Path:
        """The path of a part's graph in ``form``, or in the portable form if the bundle does not have ``form``."""
        forms = self.manifest.graphs[part]
        return self.path / forms.get(form, forms["portable"])

    def file(self, name: str) -> Path:
        """The path of the file ``name`` of the bundle. Raises BundleError if the manifest does not name it."""
        if name not in self.manifest.files:
            raise BundleError(f"bundle {self.path} has no {name}; it has {', '.join(sorted(self.manifest.files))}")
        return self.path / name

    def update(self, *, verification: Verification | None = None, files: Mapping[str, bytes] | None = None) -> Bundle:
        """Write ``files`` into the bundle, set its verification summary, and return the new state.

        What is None stays as it is.

        Raises the errors of ``BundleEdit.put``, and OutputError if another process is writing to the bundle.
        """
        with edit_bundle(self) as edit:
            return edit.put(verification=verification, files=files)

    def _is_optional(self, name: str) -> bool:
        """Whether the bundle can be run without the file: engines, and the files that a swap kept."""
        return name in self.manifest.engines or name.startswith(f"{PREVIOUS}/")

    def _damages(self, names: Iterable[str], verify_hashes: bool = True) -> dict[str, str]:
        """Name -> ``damage``, for each file in ``names`` that is damaged."""
        pairs = ((name, self.damage(name, verify_hashes)) for name in names)
        return {name: damage for name, damage in pairs if damage is not None}

    def _refuse(self, damages: Mapping[str, str], surplus: Sequence[str] = ()) -> None:
        """Raise BundleError if there is any damage or surplus file. The message advises the smallest repair."""
        problems = [f"{name} {damage}" for name, damage in damages.items()] + [*surplus]
        if not problems:
            return
        listing = problems[0] if len(problems) == 1 else "\n  " + "\n  ".join(problems) + "\n"
        engines = [name for name in damages if name in self.manifest.engines]
        state = "is damaged" if damages else "is whole, but has files beside its own"
        if not damages:
            remedy = "Move them elsewhere"
        elif len(engines) == len(problems):
            commands = dict.fromkeys(self.manifest.build_command(self.path, name) for name in engines)
            remedy = f"Build what is damaged again: {'; '.join(commands)}"
        else:
            remedy = f"Export it again: {self.manifest.export_command(self.path)}"
        raise BundleError(f"bundle {self.path} {state}: {listing}{'. ' if len(problems) == 1 else ''}{remedy}")


def as_bundle(bundle: Bundle | str | Path) -> Bundle:
    """``bundle`` itself if it is a ``Bundle``; otherwise the bundle that ``Bundle.open`` opens at that path."""
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)


def check_bundle(path: str | Path) -> Bundle:
    """Open a bundle and check every file in it, with sha256. A file that the manifest does not name is a fault, too.

    Raises BundleError, which lists everything that is wrong.
    """
    bundle = Bundle(Path(path), _read_manifest(Path(path)))
    bundle.check()
    return bundle


@dataclass
class BundleEdit:
    """The right to write to a bundle, for as long as ``edit_bundle`` holds the bundle's lock.

    bundle: the current state. draft: a folder on the same disk, empty at first, for files that ``put`` moves into the
    bundle; it is removed at the end.
    """

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
        """Write ``files`` into the bundle, change its manifest, and return the new state. None changes nothing.

        verification: the new summary. files: path in the bundle -> bytes, or the path of a file under ``draft``, which
        is moved. engines: path in the bundle -> description of each engine among ``files``. contents: entries to add
        to ``Manifest.contents``.

        If the process is killed meanwhile, the bundle can still be opened. Raises OutputError if the bundle cannot be
        written to, and BundleError for a path where the bundle cannot have a file, such as that of a graph.
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
            infos = {name: info for name, info in manifest.files.items() if name not in files}
            other_engines = {name: engine for name, engine in manifest.engines.items() if name not in files}
            if len(infos) < len(manifest.files):
                # The manifest must not name a file while it is replaced: neither its old hash nor its new one is true.
                reduced = msgspec.structs.replace(manifest, files=infos, engines=other_engines)
                write_file(path / NAME, encode_manifest(reduced))
            for name, data in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(data, bytes):
                    write_file(path / name, data)
                else:
                    share(data, path)
                    move_file(data, path / name)
                infos[name] = file_info(path / name, sync=True)
            changed = msgspec.structs.replace(
                manifest,
                files=infos,
                engines=other_engines | dict(engines or {}),
                contents=manifest.contents | dict(contents or {}),
                verification=verification or manifest.verification,
            )
            write_file(path / NAME, encode_manifest(changed))
        self.bundle = Bundle(path, changed)
        return self.bundle


@contextmanager
def edit_bundle(bundle: Bundle) -> Iterator[BundleEdit]:
    """Context that holds the lock of a bundle, and gives the right to write to it.

    Raises OutputError if another process holds the lock, or if the bundle cannot be written to.
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
    """Context that holds the lock of the bundle at ``place``, which the operating system drops if this process dies.

    place: the resolved path. out: the path for messages. otherwise: the message's advice if another process holds the
    lock, which raises OutputError.
    """
    with ExitStack() as stack:
        with naming_bundle(out):
            acquired = stack.enter_context(lock(place.with_name(f".{place.name}.lock")))
        if not acquired:
            raise OutputError(f"cannot write bundle {out}: another process is writing it now. {otherwise}")
        yield


@contextmanager
def naming_bundle(out: Path) -> Iterator[None]:
    """Context in which an OSError becomes an OutputError that names the bundle ``out``."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write bundle {out}: {reason(error)}. {advice(error)}") from error


def _read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle at ``path``. Raises BundleError if there is no bundle or its manifest is not valid."""
    remedy = f"Make a bundle with: vaedeploy export --vae NAME --out {path}"
    if not path.exists():
        raise BundleError(f"there is no bundle at {path}. {remedy}")
    if not path.is_dir():
        raise BundleError(f"{path} is a file; a bundle is a folder with a {NAME} in it. Give the folder")
    try:
        data = (path / NAME).read_bytes()
    except FileNotFoundError as error:
        if any(path.iterdir()):  # a bundle can be made in an empty folder, but not in this one
            remedy = "Give a bundle's folder, or make one in another place: vaedeploy export --vae NAME --out PLACE"
        raise BundleError(f"{path} is not a bundle: it has no {NAME}. {remedy}") from error
    except OSError as error:
        raise BundleError(f"bundle {path}: {NAME} cannot be read: {reason(error)}") from error
    return decode_manifest(data, path)


def _surplus(bundle: Bundle) -> list[str]:
    """A phrase for each file in the bundle's folder that the manifest does not name."""
    known = {NAME, *bundle.manifest.files}
    names = sorted(p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if not p.is_dir())
    return [f"{name} is not in {NAME}" for name in names if name not in known]


def _link_fault(bundle: Path, name: str) -> str | None:
    """What is wrong if a symbolic link on the way to the file ``name`` leads out of the bundle; otherwise None."""
    inside = (bundle / name).resolve().is_relative_to(bundle.resolve())
    return None if inside else "leaves the bundle through a link"


def file_info(path: Path, sync: bool = False) -> FileInfo:
    """A file's sha256 and size. sync: flush the file to disk first, so that it survives a power cut."""
    if sync:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    with path.open("rb") as file:
        return FileInfo(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
