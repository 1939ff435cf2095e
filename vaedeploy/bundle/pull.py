"""Pulling bundles from the hub: into the cache, or into a folder.

    >>> bundle_folder("hf://someone/mse840k@0123456789abcdef0123456789abcdef01234567")
    PosixPath('/home/me/.cache/vaedeploy/bundles/someone/mse840k/0123456789abcdef0123456789abcdef01234567/mse840k')

A copy is of one commit, so it never changes, and needs no network once it is there. It is put in place in one step: a
killed process leaves nothing that could be opened.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vaedeploy.bundle.address import COMMIT, Address, copy_place, is_address, parse_address
from vaedeploy.bundle.bundle import Bundle, file_info
from vaedeploy.bundle.create import create_bundle
from vaedeploy.bundle.edit import naming_bundle
from vaedeploy.bundle.encoding import check_identity, decode_manifest
from vaedeploy.bundle.manifest import NAME
from vaedeploy.bundle.stored import LARGEST
from vaedeploy.errors import BundleError, DownloadError
from vaedeploy.system import hub
from vaedeploy.system.atomic import clear_leftovers, draft_name, link_or_copy, lock_name, replace_directory
from vaedeploy.system.documents import read_document
from vaedeploy.system.installs import install_command
from vaedeploy.system.lock import lock
from vaedeploy.system.oserrors import reason
from vaedeploy.system.progress import Progress, silent

OTHERWISE = "or pull it on another machine and copy the folder here"
"""What to do where the hub cannot be reached."""

ADVICE = "Tell the repository's owner, or take another revision"
"""What to do about a bundle that is damaged on the hub."""


def bundle_folder(bundle: str | Path, progress: Progress = silent) -> Path:
    """The folder of a bundle: a path as it is, and for an address the copy in the cache, which is pulled if need be.

    Raises InputError for an invalid address, and what ``pull_into`` raises.
    """
    return cached_copy(parse_address(str(bundle)), progress) if is_address(bundle) else Path(bundle)


def cached_copy(address: Address, progress: Progress = silent, identity: str | None = None) -> Path:
    """The copy of a bundle in the cache. The hub is not asked if the revision is a commit that is there.

    identity: a bundle that is not in the cache is pulled only if its VAE has this identity.
    """
    commit = address.revision or ""
    if not COMMIT.fullmatch(commit) or not _is_there(copy_place(address.repository, commit)):
        address, data = _read_manifest(address, identity, progress)
        place = copy_place(address.repository, address.revision or "")
        with naming_bundle(place), _alone(place):
            if not _is_there(place):
                draft = draft_name(place)
                draft.mkdir()
                try:
                    _fill(draft, address, data, progress)
                    replace_directory(draft, place)
                finally:
                    shutil.rmtree(draft, ignore_errors=True)
        return place
    return copy_place(address.repository, commit)


def pull_into(
    address: Address, out: Path, *, identity: str | None = None, force: bool = False, progress: Progress = silent
) -> tuple[Bundle, Address]:
    """Pull a bundle into the new folder ``out``. Returns it, and the address with its commit.

    identity: that of its VAE. force: replace a bundle that is there.

    Raises DownloadError where the hub cannot be reached, or has no such repository or revision; BundleError where the
    repository holds no bundle, a damaged one, or one of a newer format; and the errors of ``create_bundle``.
    """
    with create_bundle(out, force) as draft:
        address, data = _read_manifest(address, identity, progress)
        _fill(draft.path, address, data, progress)
        return draft.adopt(), address


def _is_there(place: Path) -> bool:
    return (place / NAME).exists()


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Context in which only this process puts something at ``place``. It waits for others, which pull the same."""
    place.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock(lock_name(place)) as acquired:
            if acquired:
                clear_leftovers(place)
                yield
                return
        time.sleep(0.1)


def _read_manifest(address: Address, identity: str | None, progress: Progress) -> tuple[Address, bytes]:
    """The address with its commit, and the bytes of the manifest there, whose VAE has that identity."""
    file = _fetch(address, NAME, progress)
    if file is None:
        at = f" at revision {address.revision}" if address.revision else ""
        raise BundleError(
            f"the hub repository {address.repository} has no {NAME}{at}, so it holds no bundle. See what it has at "
            f"{hub.page(address.repository)}; weights become a bundle with: vaedeploy export {address.repository}"
        )
    address = Address(address.repository, file.revision or address.revision)
    try:
        data = read_document(file.path.resolve(), LARGEST)
    except OSError as error:
        raise BundleError(f"bundle {address}: {NAME} cannot be read: {reason(error)}. {ADVICE}") from error
    check_identity(decode_manifest(data, str(address), ADVICE), address, identity)
    return address, data


def _fill(folder: Path, address: Address, data: bytes, progress: Progress) -> None:
    """Put the manifest ``data`` and every file that it names into ``folder``, each checked."""
    manifest = decode_manifest(data, str(address), ADVICE)
    what, total, done = f"Pulling {address.repository}", sum(info.bytes for info in manifest.files.values()), 0
    progress(what, done, total)
    damages = []
    for name, info in manifest.files.items():
        fetched = _fetch(address, name, _part(progress, what, done, total))
        done += info.bytes
        if fetched is None:
            damages.append(f"{name} is missing")
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(fetched.path.resolve(), target)  # takes no room twice where the disk has links
        if file_info(target, sync=True) != info:
            damages.append(f"{name} is not as {NAME} says")
    progress(what, total, total)
    if damages:
        raise BundleError(f"bundle {address} is damaged: {'; '.join(damages)}. {ADVICE}")
    (folder / NAME).write_bytes(data)
    file_info(folder / NAME, sync=True)


def _part(progress: Progress, what: str, before: int, total: int) -> Progress:
    """One file's Progress, which reports to that of all files. before: the bytes of the files before it."""

    def report(_: str, done: float, __: float) -> None:
        if before + done < total:  # the end is reported once, when the last file has been checked
            progress(what, before + done, total)

    return report


def _fetch(address: Address, file: str, progress: Progress) -> hub.Fetched | None:
    try:
        return hub.fetch_if_there(
            address.repository, [file], revision=address.revision, otherwise=OTHERWISE, progress=progress
        )
    except ModuleNotFoundError as error:
        raise DownloadError(
            f"{address} is on the hub, and {error.name}, which downloads from it, is not installed. "
            f"Run: {install_command('hub')}, {OTHERWISE}"
        ) from error
