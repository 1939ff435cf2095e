"""Opening a bundle as one thing, even if other processes replace it or write to it meanwhile.

All its files are opened before any is read, so that they belong to one bundle, whatever is put in its place afterwards.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vaedeploy.bundle.bundle import Bundle
from vaedeploy.bundle.manifest import NAME
from vaedeploy.bundle.pull import bundle_folder
from vaedeploy.bundle.stored import link_fault, read_manifest
from vaedeploy.errors import BundleError
from vaedeploy.system.atomic import is_draft
from vaedeploy.system.files import HeldFolder
from vaedeploy.system.oserrors import reason
from vaedeploy.system.places import is_folder

ATTEMPTS = 50
"""How often a bundle is opened anew if another process changed it while it was read."""

Faults = tuple[Mapping[str, str], Sequence[str]]
"""What is wrong with a bundle: name of a file -> its damage, and a phrase for each file that does not belong to it."""


def open_whole(path: Path, verify_hashes: bool) -> Bundle:
    """``Bundle.hold``."""

    def find_faults(bundle: Bundle) -> Faults:
        needed = (name for name in bundle.manifest.files if not bundle.is_optional(name))
        return bundle.damages(needed, verify_hashes), ()

    return _open(path, find_faults)


def check_bundle(path: str | Path) -> Bundle:
    """Open a bundle and check every file in it, with sha256. A file that the manifest does not name is a fault, too.

    Raises BundleError, which lists everything that is wrong.
    """
    bundle = _open(bundle_folder(path), lambda bundle: (bundle.damages(bundle.manifest.files), _surplus(bundle)))
    bundle.release()
    return Bundle(bundle.path, bundle.manifest)


def _open(path: Path, find_faults: Callable[[Bundle], Faults]) -> Bundle:
    """The bundle at ``path``, its files held open. Raises BundleError with what ``find_faults`` finds.

    A writer changes the manifest before the files and again after them, so the manifest that was read may not be that
    of the files. Faults therefore count only if the bundle did not change meanwhile; otherwise it is opened anew.
    """
    for attempt in range(ATTEMPTS):
        last = attempt == ATTEMPTS - 1
        bundle = None
        try:
            bundle = _hold(path)
            damages, surplus = find_faults(bundle)
            if not damages and not surplus:
                return bundle
            if last or _is_current(bundle):
                bundle.refuse(damages, surplus)
        except OSError as error:  # the folder went away while it was looked through
            if last:
                raise BundleError(f"bundle {path} cannot be read: {reason(error)}") from error
        if bundle is not None:
            bundle.release()
        time.sleep(0.001 * attempt)
    raise AssertionError("the last attempt returns or raises")


def _hold(path: Path) -> Bundle:
    """The bundle at ``path``, nothing of it checked. Raises OSError if it was replaced or removed meanwhile."""
    if not is_folder(path):
        read_manifest(path)  # says what is there instead, or waits for it
    folder = HeldFolder(path)
    try:
        manifest = read_manifest(path, folder)
    except BundleError as error:
        if folder.is_at(path):
            raise
        raise OSError(errno.ESTALE, "another bundle took its place") from error
    bundle = Bundle(path, manifest, folder)
    for name in bundle.manifest.files:
        with suppress(OSError):  # ``damage`` reports what cannot be opened
            if not link_fault(path, name):
                folder.hold(name)
    return bundle


def _is_current(bundle: Bundle) -> bool:
    """Whether a bundle is still at its path, and as it was."""
    try:
        at_its_path = bundle.held is None or bundle.held.is_at(bundle.path)
        return at_its_path and read_manifest(bundle.path) == bundle.manifest
    except (OSError, BundleError):
        return False


def _surplus(bundle: Bundle) -> list[str]:
    """A phrase for each file in the bundle's folder that the manifest does not name.

    What a killed writer left does not count: the next writer removes it.
    """
    known = {NAME, *bundle.manifest.files, *bundle.manifest.unfinished}
    files = (p for p in bundle.path.rglob("*") if not p.is_dir() and not is_draft(p))
    names = sorted(p.relative_to(bundle.path).as_posix() for p in files)
    return [f"{name} is not in {NAME}" for name in names if name not in known]
