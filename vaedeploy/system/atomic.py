"""Atomic writes: nobody finds a file or directory half-written, even after the process that wrote it was killed.

A file is written under a temporary name in the directory where it belongs, and then renamed. ``lock.lock`` guards a
directory that only one process may write at a time: the operating system drops the lock when its holder dies.

Throughout this module ``place`` is where a file or directory belongs, and ``draft`` is the temporary one beside it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vaedeploy.errors import OutputError
from vaedeploy.system.oserrors import advice, reason


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` in one step, replacing any file there.

    Raises OutputError if that fails, or if ``path`` is a directory or a device; no temporary file is left behind then.
    """
    place = path.resolve()
    try:
        _check_kind(path, place)
        # Not tempfile: its files are for their owner only, and this one is for everyone whom the umask allows.
        draft = draft_name(place)
        try:
            with draft.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(place)
        finally:
            draft.unlink(missing_ok=True)
        sync_directory(place.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}. {advice(error)}") from error


@contextmanager
def transient_folder(folder: Path) -> Iterator[None]:
    """Context in which ``folder`` exists.

    It and its missing parents are made on entry; those of them that are still empty at exit are removed. Raises OSError
    if they cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in missing:
            with suppress(OSError):
                place.rmdir()


def check_place(path: Path) -> None:
    """Raise OutputError if ``write_file`` could not write ``path``, so that long work fails before it and not after it.

    The check makes an empty file beside ``path`` and removes it.
    """
    place = path.resolve()
    draft = draft_name(place)
    try:
        _check_kind(path, place)
        draft.touch(exist_ok=False)
        draft.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}. {advice(error)}") from error


def _check_kind(path: Path, place: Path) -> None:
    if place.exists() and not place.is_file():
        raise OutputError(f"cannot write {path}: there is something that is not a file. Choose another place")


def link_or_copy(file: Path, place: Path) -> None:
    """Make ``place`` a hard link to ``file``, or a copy of it if the disk does not allow a link."""
    try:
        os.link(file, place)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(file, place)


def move_file(draft: Path, place: Path) -> None:
    """Rename the file ``draft`` to ``place``, replacing any file there.

    If ``place`` is on another disk, ``draft`` is copied to a temporary file beside ``place``, which is then renamed.
    """
    try:
        draft.replace(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = draft_name(place)
        try:
            shutil.copy2(draft, copy)
            copy.replace(place)
        finally:
            copy.unlink(missing_ok=True)
        draft.unlink()


def replace_directory(draft: Path, place: Path) -> None:
    """Rename the directory ``draft`` to ``place``, replacing any directory there.

    No system can rename a directory over one that is not empty, so the old directory is renamed first, and removed at
    the end. If the second rename fails, the old directory is put back.
    """
    old = _beside(place, "old")
    try:
        if place.exists():
            place.rename(old)
        draft.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
    sync_directory(place.parent)


def clear_leftovers(place: Path) -> None:
    """Remove the temporary directories that killed processes left beside ``place``.

    If the process was killed within ``replace_directory``, ``place`` gets its old directory back. Call this only while
    holding the lock of ``place``: otherwise the directories may be those of a process that is still at work.
    """
    for old in _leftovers(place, "old"):
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(place)
    for draft in _leftovers(place, "tmp"):
        shutil.rmtree(draft, ignore_errors=True)


def draft_name(place: Path) -> Path:
    """An unused path beside ``place``, for a draft that will be renamed to ``place``."""
    return _beside(place, "tmp")


def _beside(place: Path, kind: str) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(6)}.{kind}")


def _leftovers(place: Path, kind: str) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{12}}\.{kind}")
    return [path for path in place.parent.iterdir() if pattern.fullmatch(path.name)]


def share(file: Path, folder: Path) -> None:
    """Give ``file`` the read and write permissions of ``folder``.

    Some libraries write files that only their owner may read; a bundle is for everyone whom the umask allows.
    """
    file.chmod(folder.stat().st_mode & 0o666)


def sync_directory(path: Path) -> None:
    """Flush a directory to disk, so that renames in it survive a power cut. Windows has no way to ask for that."""
    if sys.platform != "win32":
        handle = os.open(path, os.O_RDONLY)
        try:
            # Some network file systems refuse this for directories, and they offer no other way.
            with suppress(OSError):
                os.fsync(handle)
        finally:
            os.close(handle)
