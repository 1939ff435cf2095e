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
from vaedeploy.system.exchange import exchange
from vaedeploy.system.lock import hold_file, lock
from vaedeploy.system.oserrors import advice, reason
from vaedeploy.system.places import resolved


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` in one step, replacing any file there.

    Raises OutputError if that fails, or if ``path`` is a directory or a device; no temporary file is left behind then.
    """
    place = resolved(path)
    try:
        _check_kind(path, place)
        while not _write_draft(draft_name(place), place, data):
            pass
        sync_directory(place.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}. {advice(error)}") from error


def _write_draft(draft: Path, place: Path, data: bytes) -> bool:
    """Write ``draft`` and rename it. False if ``clear_drafts`` of another process removed it first."""
    # Not tempfile: its files are for their owner only, and this file is for everyone whom the umask allows.
    try:
        with hold_file(draft) as handle:
            if handle is None:
                return False
            _write_all(handle, data)
            os.fsync(handle)
            if sys.platform != "win32":
                draft.replace(place)
        if sys.platform == "win32":  # Windows renames no open file
            draft.replace(place)
        return True
    finally:
        draft.unlink(missing_ok=True)


def _write_all(handle: int, data: bytes) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(handle, view[done:])


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
    """Raise OutputError if ``write_file`` could not write ``path``, so that long work fails before it begins.

    The check makes and removes an empty file beside ``path``, and removes those that killed processes left there.
    """
    place = resolved(path)
    draft = draft_name(place)
    clear_drafts(place.parent, place.name)
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
    except (FileNotFoundError, FileExistsError):
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
    draft.unlink(missing_ok=True)  # it is still there if both are links to one file: renaming then does nothing


def replace_directory(draft: Path, place: Path) -> None:
    """Rename the directory ``draft`` to ``place``, replacing any directory there.

    Where the system can exchange two directories, that is one step. Elsewhere the old directory is renamed first, to a
    name from which ``put_back`` and ``clear_leftovers`` bring it back if this process is killed in between; if the
    second rename fails, it is put back here.
    """
    if not exchange(draft, place):
        _rename_twice(draft, place)
    shutil.rmtree(draft, ignore_errors=True)
    sync_directory(place.parent)


def _rename_twice(draft: Path, place: Path) -> None:
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


def set_aside(place: Path) -> Path | None:
    """The directory that ``replace_directory`` took away from ``place``, if there is nothing at ``place``."""
    try:
        return None if place.exists() else next(iter(_leftovers(place, "old")), None)
    except OSError:
        return None


def put_back(place: Path) -> bool:
    """Put back a directory that a killed process set aside from ``place``. False if another process holds the lock of
    ``place``, and so is at work there, or if the directory cannot be put back.
    """
    try:
        with lock(lock_name(place)) as free:
            if free:
                _put_back(place)
        return place.exists()
    except OSError:
        return False


def _put_back(place: Path) -> None:
    for old in _leftovers(place, "old"):
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(place)


def lock_name(place: Path) -> Path:
    """The lock file of a directory that only one process may write at a time."""
    return place.with_name(f".{place.name}.lock")


def clear_leftovers(place: Path) -> None:
    """Remove the temporary files and directories that killed processes left beside ``place``.

    If the process was killed within ``replace_directory``, ``place`` gets its old directory back. Call this only while
    holding the lock of ``place``: otherwise the directories may be those of a process that is still at work.
    """
    _put_back(place)
    for draft in _leftovers(place, "tmp"):
        if draft.is_dir() and not draft.is_symlink():
            shutil.rmtree(draft, ignore_errors=True)
    clear_drafts(place.parent, place.name)


def clear_drafts(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files of ``write_file`` that killed processes left in ``folder``: those of every file, or of
    the file ``name``. What another process is writing now stays, and so does what cannot be removed.
    """
    with suppress(OSError):
        for draft in [path for path in folder.iterdir() if is_draft(path, name)]:
            with suppress(OSError):
                _remove_abandoned(draft)


def _remove_abandoned(draft: Path) -> None:
    if draft.is_file() and not draft.is_symlink():
        with lock(draft):  # it removes the file that it locks, and leaves one that another process holds
            pass


def is_draft(path: Path, name: str | None = None) -> bool:
    """Whether a path is a draft's, of any file or directory or of ``name``."""
    stem = r".+" if name is None else re.escape(name)
    return re.fullmatch(rf"\.{stem}\.[0-9a-f]{{12}}\.tmp", path.name) is not None


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

    Some libraries write files that only the owner may read; a bundle is for everyone whom the umask allows.
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
