"""Making a new bundle: its files are written to a temporary folder, which is renamed when it is complete.

    >>> with create_bundle("mse840k") as draft:
    ...     save_graph(graph, draft.path / "encoder.onnx")
    ...     bundle = draft.finish(manifest)

Until then the place of the bundle stays as it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vaedeploy.bundle.address import SCHEME
from vaedeploy.bundle.bundle import Bundle, file_info
from vaedeploy.bundle.edit import check_replaceable, naming_bundle, writing
from vaedeploy.bundle.encoding import check_manifest
from vaedeploy.bundle.manifest import Manifest
from vaedeploy.bundle.stored import is_bundle, read_manifest, refuse_in_bundle, write_manifest
from vaedeploy.errors import OutputError
from vaedeploy.system.atomic import clear_leftovers, draft_name, replace_directory, share, transient_folder
from vaedeploy.system.interrupts import stop_if_interrupted
from vaedeploy.system.oserrors import shortage
from vaedeploy.system.places import is_vacant, resolved

__all__ = ["BundleDraft", "create_bundle"]

BUSY = "Wait until it is done, or choose another place with --out"


@dataclass
class BundleDraft:
    """A bundle that is being made. Write its files under ``path``, then call ``finish`` or ``adopt``.

    path: the temporary folder. out: where the caller wants the bundle, for messages. place: the same path, resolved.
    force: whether a bundle at ``place`` is replaced.
    """

    path: Path
    out: Path
    place: Path
    force: bool

    def finish(self, manifest: Manifest) -> Bundle:
        """Write ``manifest`` with the size and sha256 of every file under ``path``, and rename the folder to its place.

        Raises BundleError if the manifest contradicts itself, and OutputError if the place cannot be written to.
        """
        files = {}
        for file in sorted(file for file in self.path.rglob("*") if not file.is_dir()):
            share(file, self.path)
            files[file.relative_to(self.path).as_posix()] = file_info(file, sync=True)
        manifest = msgspec.structs.replace(manifest, files=files)
        check_manifest(manifest, self.out)
        return self._put_in_place(write_manifest(self.path, manifest))

    def adopt(self) -> Bundle:
        """Rename the folder to its place; ``path`` holds a whole bundle already, on disk and checked."""
        return self._put_in_place(read_manifest(self.path))

    def _put_in_place(self, manifest: Manifest) -> Bundle:
        _check_free(self.place, self.out, self.force)
        stop_if_interrupted()
        with naming_bundle(self.out):
            replace_directory(self.path, self.place)
        return Bundle(self.out, manifest)


@contextmanager
def create_bundle(out: str | Path, force: bool = False) -> Iterator[BundleDraft]:
    """Context that makes a bundle at ``out``: write its files under the draft's ``path``, then call its ``finish``.

    If an exception leaves the context, or ``finish`` is not called, the draft is removed and ``out`` is as it was.
    force: replace a bundle at ``out``; nothing but a bundle is ever replaced.

    Raises OutputError if ``out`` exists and may not be replaced, if it cannot be written to, if another process is
    writing it, and if the disk is full.
    """
    out = Path(out)
    place = resolved(out)
    if out.parts[:1] == (SCHEME.rstrip("/"),):  # a Path has lost a slash of it
        raise OutputError(
            f"{out} is on the hub. Choose a folder with --out, then run: vaedeploy push FOLDER OWNER/NAME"
        )
    if not place.name:
        raise OutputError(f"{out} cannot be a bundle. Choose another place with --out")
    refuse_in_bundle(place.parent)
    check_replaceable(place, out)
    with ExitStack() as stack:
        with naming_bundle(out):
            stack.enter_context(transient_folder(place.parent))
        stack.enter_context(writing(place, out, BUSY))
        with naming_bundle(out):
            clear_leftovers(place)
        _check_free(place, out, force)
        draft = BundleDraft(draft_name(place), out, place, force)
        try:
            with naming_bundle(out):
                draft.path.mkdir()
            yield draft
        except BaseException as error:
            if isinstance(error, Exception) and (short := shortage(error)):
                raise OutputError(
                    f"cannot write bundle {out}: {short[0]}. Nothing was kept. {short[1]}, or choose another place "
                    "with --out"
                ) from error
            raise
        finally:
            shutil.rmtree(draft.path, ignore_errors=True)


def _check_free(place: Path, out: Path, force: bool) -> None:
    """Raise OutputError if something is at ``place`` that may not be replaced. An empty folder may."""
    if is_vacant(place):
        return
    if not is_bundle(place):
        raise OutputError(f"{out} exists and is not a bundle; it is left as it is. Choose another place with --out")
    if not force:
        raise OutputError(
            f"{out} exists already. Replace it with --force (force=True in Python), or choose another place with --out "
            "(out=)"
        )
