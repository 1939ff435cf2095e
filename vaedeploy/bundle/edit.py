"""Changing a bundle that exists: one process at a time, and every state in between can be opened.

>>> with edit_bundle(bundle) as edit:
...     edit.put(files={"report/report.json": report.to_json()})
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vaedeploy.bundle.bundle import Bundle, file_info, link_fault, read_manifest
from vaedeploy.bundle.manifest import NAME, EngineInfo, Verification, encode_manifest, path_fault
from vaedeploy.errors import BundleError, OutputError
from vaedeploy.system.atomic import clear_leftovers, draft_name, move_file, share, write_file
from vaedeploy.system.lock import lock
from vaedeploy.system.oserrors import advice, reason
from vaedeploy.values.kinds import Part

__all__ = ["BundleEdit", "edit_bundle", "naming_bundle", "writing"]


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
            fault = "is a graph" if name in graphs else path_fault(name) or link_fault(path, name)
            if fault:
                raise BundleError(f"cannot put {name!r} into bundle {path}: it {fault}")
        with naming_bundle(path):
            manifest = read_manifest(path)
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
            yield BundleEdit(Bundle(bundle.path, read_manifest(bundle.path)), draft)
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
