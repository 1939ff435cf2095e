"""A bundle: the folder with a VAE's graphs, the results that they were verified against, and a manifest of all files.

    >>> bundle = Bundle.open("mse840k")
    >>> bundle.graph("decoder")
    PosixPath('mse840k/decoder.onnx')

``docs/bundle-format.md`` specifies the format. The manifest has the sha256 of every file in the bundle, and a manifest
that names a path outside the bundle is refused. ``create.create_bundle`` makes new bundles.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

from vaedeploy.bundle.address import PULLED_AGAIN, fetch_again, is_cached
from vaedeploy.bundle.manifest import NAME, FileInfo, Manifest, Verification
from vaedeploy.bundle.stored import link_fault, read_manifest
from vaedeploy.errors import BundleError, InputError
from vaedeploy.system.files import HeldFolder, handle_bytes, handle_sha256, handle_size, open_regular
from vaedeploy.system.hashing import file_sha256
from vaedeploy.system.oserrors import reason
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import Form, Part

__all__ = ["PREVIOUS", "Bundle", "GraphContent", "as_bundle", "file_info"]

PREVIOUS = "previous"
"""The folder in which a bundle whose VAE was swapped keeps the original bundle."""


@dataclass(frozen=True)
class GraphContent:
    """A graph as bytes: the ONNX model, and the files with its weights, by the path that the model has for them."""

    model: bytes
    weights: Mapping[str, bytes]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, as it was when it was opened. This class reads and checks it; ``VAE`` runs it.

    path: its folder. manifest: the contents of ``bundle.json``: VAE, latent contract, files, engines, verification.
    held: its files, held open, so that ``read`` gives them as they were; None to open each by its path.
    """

    path: Path
    manifest: Manifest
    held: HeldFolder | None = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        state = "verified" if self.verified else "unverified"
        return f"Bundle({str(self.path)!r}, VAE {self.manifest.vae.name}, {self.manifest.precision}, {state})"

    @classmethod
    def open(cls, path: str | Path, verify_hashes: bool = True) -> Bundle:
        """Open a bundle: read its manifest and check its files.

        path: its folder, or ``hf://owner/name@revision``, whose copy in the cache is pulled if need be.

        Every file that the manifest names must exist and have the size and, unless ``verify_hashes`` is False, the
        sha256 that the manifest states. Engines and the files that a swap kept are checked only where they are used: a
        bundle can be run without them, and engines can be built again.

        Raises BundleError, which lists everything that is wrong.
        """
        held = cls.hold(path, verify_hashes)
        held.release()
        return cls(held.path, held.manifest)

    @classmethod
    def hold(cls, path: str | Path, verify_hashes: bool = True, progress: Progress = silent) -> Bundle:
        """``open``, with every file held open: ``read`` gives what was checked here, even if another process puts
        another bundle at ``path``. ``release`` lets go of the files. progress: reports how far a pull is.
        """
        from vaedeploy.bundle.opening import open_whole  # which imports this module
        from vaedeploy.bundle.pull import bundle_folder

        if not isinstance(path, str | os.PathLike):
            raise BundleError(f"the bundle is of type {type(path).__name__}; give its folder (of a Bundle, .path)")
        return open_whole(bundle_folder(path, progress), verify_hashes)

    def release(self) -> None:
        """Let go of the files that are held. ``read`` raises InputError from now on."""
        if self.held is not None:
            self.held.close()

    def sharing_files(self) -> Bundle:
        """The same bundle, which can still be read after ``release`` of this one."""
        return replace(self, held=copy(self.held))

    def current(self) -> Bundle:
        """The bundle as it is on disk now: what was written to it since it was opened does not show here."""
        return Bundle(self.path, read_manifest(self.path))

    @property
    def verified(self) -> bool:
        """Whether the last verification passed."""
        return self.manifest.verification is not None and self.manifest.verification.passed

    def check(self) -> None:
        """Raise BundleError, which lists everything wrong, if any file is missing, altered or not in the manifest."""
        from vaedeploy.bundle.opening import check_bundle  # which imports this module

        check_bundle(self.path)

    def damage(self, name: str, verify_hash: bool = True) -> str | None:
        """How a file differs from what the manifest states, as words that follow the file's name: ``is missing``.

        None if it does not differ. verify_hash: False to skip the sha256.
        """
        try:
            if fault := self._link_fault(name):
                return fault
            with self.handle(name) as handle:
                fault = self._size_fault(name, handle_size(handle))
                return fault or (self._hash_fault(name, handle_sha256(handle)) if verify_hash else None)
        except OSError as error:
            return _unreadable(error)

    def read(self, name: str, verify_hash: bool = True) -> bytes:
        """The bytes of a file, checked against the manifest: they are hashed once they are in memory.

        verify_hash: False to check only their number. Raises BundleError if they differ or the manifest does not name
        the file, and InputError after ``release``.
        """
        data = self._read(name)
        if verify_hash:
            self.refuse(self._altered({name: data}))
        return data

    @contextmanager
    def read_graph(self, part: Part, form: Form = "portable", verify_hash: bool = True) -> Iterator[GraphContent]:
        """Context with the content of the graph that ``graph`` gives; ``read`` says what is checked and raised.

        Full-size weights take a fifth of a second to hash. A thread does so while the context runs, so do not use its
        result unless the context ends without an error.
        """
        graphs = {name for forms in self.manifest.graphs.values() for name in forms.values()}
        graph = self.graph(part, form).relative_to(self.path).as_posix()
        model = self._read(graph)
        # A model contains the names of its weights' files. Another file whose name happens to be in it does no harm.
        used = [n for n in self.manifest.files if "/" not in n and n not in graphs and n.encode() in model]
        weights = {name: self._read(name) for name in used}
        if not verify_hash:
            yield GraphContent(model, weights)
            return
        with ThreadPoolExecutor(1) as pool:
            altered = pool.submit(self._altered, {graph: model, **weights})
            try:
                yield GraphContent(model, weights)
            finally:  # altered bytes are the better reason for whatever was raised
                self.refuse(altered.result())

    def read_part(self, name: str, offset: int, size: int, sha256: str | None) -> bytes:
        """``size`` bytes at ``offset`` of a file. Raises BundleError if they do not have that sha256, or are not there,
        and InputError after ``release``.
        """
        self.file(name)
        try:
            with self.handle(name) as handle:
                data = handle_bytes(handle, size, offset)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise InputError(f"bundle {self.path} was released; open it again") from error
            self.refuse({name: _unreadable(error)})
            raise
        if len(data) != size or (sha256 is not None and hashlib.sha256(data).hexdigest() != sha256):
            self.refuse({name: f"is altered: {size:,} bytes at {offset:,} are not those that were written"})
        return data

    def _read(self, name: str) -> bytes:
        """The bytes of a file, as many as the manifest states. Raises as ``read`` does."""
        self.file(name)
        data = b""
        try:
            if not (fault := self._link_fault(name)):
                with self.handle(name) as handle:
                    if not (fault := self._size_fault(name, handle_size(handle))):
                        data = handle_bytes(handle, self.manifest.files[name].bytes)
                        fault = self._size_fault(name, len(data))
        except OSError as error:
            if error.errno == errno.EBADF:
                raise InputError(f"bundle {self.path} was released; open it again") from error
            fault = _unreadable(error)
        self.refuse({name: fault} if fault else {})
        return data

    def _altered(self, contents: Mapping[str, bytes]) -> dict[str, str]:
        """Name -> damage, for each file whose bytes do not have the sha256 that the manifest states."""
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        return {name: fault for name, sha256 in hashes.items() if (fault := self._hash_fault(name, sha256))}

    @contextmanager
    def handle(self, name: str) -> Iterator[int]:
        """Context with a handle for reading the file ``name``, whatever its content. Raises OSError."""
        if self.held is not None:
            with self.held.handle(name) as handle:
                yield handle
            return
        handle = open_regular(self.path / name)
        try:
            yield handle
        finally:
            os.close(handle)

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

    def _link_fault(self, name: str) -> str | None:
        # A held file was checked when it was opened, and its path may be another file's by now.
        return None if self.held is not None and self.held.holds(name) else link_fault(self.path, name)

    def _size_fault(self, name: str, size: int) -> str | None:
        expected = self.manifest.files[name].bytes
        return None if size == expected else f"has {size:,} bytes where {NAME} says {expected:,}"

    def _hash_fault(self, name: str, sha256: str) -> str | None:
        expected = self.manifest.files[name].sha256
        return None if sha256 == expected else f"is altered: its sha256 is {sha256} where {NAME} says {expected}"

    def is_optional(self, name: str) -> bool:
        """Whether the bundle can be run without the file: engines, and the files that a swap kept."""
        return name in self.manifest.engines or name.startswith(f"{PREVIOUS}/")

    def damages(self, names: Iterable[str], verify_hashes: bool = True) -> dict[str, str]:
        """Name -> ``damage``, for each file in ``names`` that is damaged."""
        pairs = ((name, self.damage(name, verify_hashes)) for name in names)
        return {name: damage for name, damage in pairs if damage is not None}

    def refuse(self, damages: Mapping[str, str], surplus: Sequence[str] = ()) -> None:
        """Raise BundleError if there is any damage or surplus file. The message advises the smallest repair."""
        problems = [f"{name} {damage}" for name, damage in damages.items()] + [*surplus]
        if not problems:
            return
        listing = problems[0] if len(problems) == 1 else "\n  " + "\n  ".join(problems) + "\n"
        engines = [name for name in damages if name in self.manifest.engines]
        state = "is damaged" if damages else "is undamaged, but has files that its manifest does not name"
        if not damages:
            remedy = "Move them elsewhere"
        elif len(engines) == len(problems) and not is_cached(self.path):
            commands = dict.fromkeys(self.manifest.build_command(self.path, name) for name in engines)
            remedy = f"Build what is damaged again: {'; '.join(commands)}"
        elif is_cached(self.path):
            remedy = PULLED_AGAIN
        else:
            remedy = f"Export it again: {self.manifest.export_command(self.path)}. {fetch_again(self.path)}"
        raise BundleError(f"bundle {self.path} {state}: {listing}{'. ' if len(problems) == 1 else ''}{remedy}")


def as_bundle(bundle: Bundle | str | Path) -> Bundle:
    """``bundle`` itself if it is a ``Bundle``; otherwise the bundle that ``Bundle.open`` opens at that path."""
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)


def _unreadable(error: OSError) -> str:
    missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    return "is missing" if missing else f"cannot be read: {reason(error)}"


def file_info(path: Path, sync: bool = False) -> FileInfo:
    """A file's sha256 and size. sync: flush the file to disk first, so that it survives a power cut."""
    if sync:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    return FileInfo(file_sha256(path), path.stat().st_size)
