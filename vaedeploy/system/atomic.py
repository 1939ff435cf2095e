"""Writing so that a reader, or a run that is killed, never meets half of something.

A file is written beside its place and renamed into it; a directory that only one process may write at a time is
guarded by a lock that the operating system drops when its holder dies.
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

if sys.platform == "win32":
    pass
else:
    pass


def write_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` in one step, over whatever file is there.

    Raises OutputError where that cannot be done, and for a place that is a directory or a device; nothing is left
    behind then.
    """
    place = path.resolve()
    try:
        _check_kind(path, place)
        # Not tempfile's: those are for their owner alone, and what is written here is for all whom the umask allows.
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
    """Make ``folder`` and its parents; at the end, remove those of them that were made here and are still empty.

    Raises OSError where they cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for made in missing:
            with suppress(OSError):
                made.rmdir()


def check_place(path: Path) -> None:
    """Raise OutputError where ``write_file`` could not write ``path``, to fail before long work and not after it.

    That is tried, with an empty file beside it which is removed again.
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
    """Have ``file`` at ``place`` as well: as a hard link where the disk has them, else as a copy."""
    try:
        os.link(file, place)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(file, place)


def move_file(draft: Path, place: Path) -> None:
    """Rename the file ``draft`` to ``place``, over what is there; where that is on another disk, by a copy beside
    it.
    """
    try:
        draft.replace(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        near = draft_name(place)
        try:
            shutil.copy2(draft, near)
            near.replace(place)
        finally:
            near.unlink(missing_ok=True)
        draft.unlink()


def replace_directory(draft: Path, place: Path) -> None:
    """Rename the directory ``draft`` to ``place``, and put what was there back where that fails.

    No system renames a directory over a full one, so the old one steps aside for the moment.
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
    """Undo what a killed run left beside ``place``. Only for whoever holds its lock: nobody else is at work then."""
    for left in _leftovers(place, "old"):
        if place.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.rename(place)
    for left in _leftovers(place, "tmp"):
        shutil.rmtree(left, ignore_errors=True)


def draft_name(place: Path) -> Path:
    """A free name beside ``place`` for what is to be renamed to it."""
    return _beside(place, "tmp")


def _beside(place: Path, kind: str) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(6)}.{kind}")


def _leftovers(place: Path, kind: str) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{12}}\.{kind}")
    return [path for path in place.parent.iterdir() if pattern.fullmatch(path.name)]


def share(file: Path, folder: Path) -> None:
    """Give a file the rights of ``folder``: some libraries write for the owner alone, a bundle is for everyone whom the
    umask allows.
    """
    file.chmod(folder.stat().st_mode & 0o666)


def sync_directory(path: Path) -> None:
    """Make the renames in a directory last through a power cut, where the system has a way to ask for that."""
    if sys.platform != "win32":
        handle = os.open(path, os.O_RDONLY)
        try:
            # Some network file systems refuse this for directories; there is no other way to ask them.
            with suppress(OSError):
                os.fsync(handle)
        finally:
            os.close(handle)
