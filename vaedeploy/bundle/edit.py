"""Changing a bundle that exists: one process at a time, and every state in between is a whole bundle.

>>> with edit_bundle(bundle) as edit:
...     edit.put(files={"report/report.json": report.to_json()})
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vaedeploy.bundle.address import is_cached
from vaedeploy.bundle.bundle import Bundle, file_info
from vaedeploy.bundle.encoding import path_fault
from vaedeploy.bundle.manifest import EngineInfo, FileInfo, Manifest, Verification
from vaedeploy.bundle.stored import link_fault, read_manifest, write_manifest
from vaedeploy.errors import BundleError, OutputError
from vaedeploy.system.atomic import (
    clear_drafts,
    clear_leftovers,
    draft_name,
    lock_name,
    move_file,
    share,
    sync_directory,
)
from vaedeploy.system.lock import lock
from vaedeploy.system.mounts import is_mount
from vaedeploy.system.oserrors import told_as
from vaedeploy.system.places import resolved
from vaedeploy.values.kinds import Part

__all__ = ["BundleEdit", "check_replaceable", "edit_bundle", "naming_bundle", "writing"]


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

        If the process is killed meanwhile, the bundle is whole; it may lack what ``files`` would have replaced. Raises
        OutputError if the bundle cannot be written to, and BundleError for a path where the bundle cannot have a file,
        such as that of a graph.
        """
        files = dict(files or {})
        path = self.bundle.path
        graphs = {name for forms in self.bundle.manifest.graphs.values() for name in forms.values()}
        for name in files:
            fault = "is a graph" if name in graphs else path_fault(name) or link_fault(path, name)
            if fault:
                raise BundleError(f"cannot put {name!r} into bundle {path}: it {fault}")
        with naming_bundle(path):
            staged = {name: self._stage(name, data) for name, data in files.items()}
            manifest = read_manifest(path)
            others = msgspec.structs.replace(
                manifest,
                files={name: info for name, info in manifest.files.items() if name not in files},
                engines={name: engine for name, engine in manifest.engines.items() if name not in files},
                unfinished=(*dict.fromkeys((*manifest.unfinished, *files)),),
            )
            if files:
                # The manifest must not name a file while it is replaced: neither its old hash nor its new one holds.
                write_manifest(path, others)
            for name, (draft, _) in staged.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                move_file(draft, path / name)
            for folder in {(path / name).parent for name in files}:
                sync_directory(folder)
            changed = msgspec.structs.replace(
                others,
                files=others.files | {name: info for name, (_, info) in staged.items()},
                engines=others.engines | dict(engines or {}),
                contents=manifest.contents | dict(contents or {}),
                verification=verification or manifest.verification,
                unfinished=tuple(name for name in manifest.unfinished if name not in files),
            )
            self.bundle = Bundle(path, write_manifest(path, changed))
        return self.bundle

    def _stage(self, name: str, data: bytes | Path) -> tuple[Path, FileInfo]:
        """A file under ``draft`` that is complete and on disk, so that nothing in the bundle changes before that."""
        draft = data if isinstance(data, Path) else draft_name(self.draft / Path(name).name)
        if isinstance(data, bytes):
            draft.write_bytes(data)
        share(draft, self.bundle.path)
        return draft, file_info(draft, sync=True)


@contextmanager
def edit_bundle(bundle: Bundle, replace: bool = False) -> Iterator[BundleEdit]:
    """Context that holds the lock of a bundle, and gives the right to write to it. What killed writers left is removed.

    replace: whether the whole bundle is to be replaced. Raises OutputError if another process holds the lock or has put
    another bundle there since ``bundle`` was opened, or if the bundle cannot be written to or replaced.
    """
    place = resolved(bundle.path)
    if is_cached(place):
        raise OutputError(
            f"cannot write bundle {bundle.path}: it is the cache's copy of a bundle on the hub. Pull it into a folder "
            "of your own: vaedeploy pull OWNER/NAME -o FOLDER"
        )
    if replace:
        check_replaceable(place, bundle.path)
    with writing(place, bundle.path, "Wait until it is done"):
        with naming_bundle(bundle.path):
            clear_leftovers(place)
            manifest = read_manifest(bundle.path)
            if _graphs(manifest) != _graphs(bundle.manifest):
                raise OutputError(
                    f"cannot write bundle {bundle.path}: another process has replaced it since it was opened. Open it "
                    "again (on the command line: run the command again)"
                )
            manifest = _finish(bundle.path, manifest)
            draft = draft_name(place)
            draft.mkdir()
        try:
            yield BundleEdit(Bundle(bundle.path, manifest), draft)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _graphs(manifest: Manifest) -> object:
    """What makes bundles different: their VAE, their graphs, and the weights, whose files are named after the
    graphs.
    """
    graphs = tuple(name for forms in manifest.graphs.values() for name in forms.values())
    return manifest.vae.identity, {n: info.sha256 for n, info in manifest.files.items() if n.startswith(graphs)}


def _finish(path: Path, manifest: Manifest) -> Manifest:
    """Remove what a killed writer left in the bundle: drafts, and files that it had not put into the manifest yet."""
    for folder, _, _ in os.walk(path):
        clear_drafts(Path(folder))
    if not manifest.unfinished:
        return manifest
    for name in manifest.unfinished:
        if name not in manifest.files and not link_fault(path, name):
            (path / name).unlink(missing_ok=True)
    return write_manifest(path, msgspec.structs.replace(manifest, unfinished=()))


def check_replaceable(place: Path, out: Path) -> None:
    """Raise OutputError if ``place`` is a mount point, which cannot be renamed. out: the path for the message."""
    if is_mount(place):
        raise OutputError(
            f"cannot replace {out}: it is a mount point, which no system can rename. Put the bundle into a folder in "
            f"it, such as {out / 'vae'}, or mount the folder above it"
        )


@contextmanager
def writing(place: Path, out: Path, otherwise: str) -> Iterator[None]:
    """Context that holds the lock of the bundle at ``place``, which the operating system drops if this process dies.

    place: the resolved path. out: the path for messages. otherwise: the message's advice if another process holds the
    lock, which raises OutputError.
    """
    with ExitStack() as stack:
        with naming_bundle(out):
            acquired = stack.enter_context(lock(lock_name(place)))
        if not acquired:
            raise OutputError(f"cannot write bundle {out}: another process is writing it now. {otherwise}")
        yield


def naming_bundle(out: Path) -> AbstractContextManager[None]:
    """Context in which an OSError becomes an OutputError that names the bundle ``out``."""
    return told_as(f"cannot write bundle {out}")
