"""A bundle: the folder with a VAE's graphs, the results that they were verified against, and a manifest of all files.

    >>> bundle = Bundle.open("mse840k")
    >>> bundle.graph("decoder")
    PosixPath('mse840k/decoder.onnx')

``docs/bundle-format.md`` specifies the format. The manifest has the sha256 of every file in the bundle, and a manifest
that names a path outside the bundle is refused. ``create.create_bundle`` makes new bundles.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vaedeploy.bundle.manifest import (
    NAME,
    FileInfo,
    Manifest,
    Verification,
    decode_manifest,
)
from vaedeploy.errors import BundleError
from vaedeploy.system.hashing import file_sha256
from vaedeploy.system.oserrors import reason
from vaedeploy.values.kinds import Form, Part

__all__ = ["PREVIOUS", "Bundle", "as_bundle", "check_bundle", "file_info", "link_fault", "read_manifest"]

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
        bundle = cls(Path(path), read_manifest(Path(path)))
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
            if fault := link_fault(self.path, name):
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
        from vaedeploy.bundle.edit import edit_bundle  # which imports this module

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
        state = "is damaged" if damages else "is undamaged, but has files that its manifest does not name"
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
    bundle = Bundle(Path(path), read_manifest(Path(path)))
    bundle.check()
    return bundle


def read_manifest(path: Path) -> Manifest:
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


def link_fault(bundle: Path, name: str) -> str | None:
    """What is wrong if a symbolic link on the way to the file ``name`` leads out of the bundle; otherwise None."""
    inside = (bundle / name).resolve().is_relative_to(bundle.resolve())
    return None if inside else "leaves the bundle through a link"


def file_info(path: Path, sync: bool = False) -> FileInfo:
    """A file's sha256 and size. sync: flush the file to disk first, so that it survives a power cut."""
    if sync:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    return FileInfo(file_sha256(path), path.stat().st_size)
