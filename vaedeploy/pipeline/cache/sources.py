"""Where pictures are: folders, lists of files, tar files as webdataset writes them, and parquet files.

A ``Picture`` is a range of bytes of a file, or a cell of a table, with a stamp, the file's size and time: while the
stamp is the same, so is the picture.
"""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from vaedeploy.errors import BackendError, ImageError, InputError
from vaedeploy.images.cache_format import FailedPicture
from vaedeploy.images.files import image_suffixes
from vaedeploy.images.headers import is_image
from vaedeploy.images.plugins import PLUGINS
from vaedeploy.pipeline.cache import parquet
from vaedeploy.system.files import handle_bytes, open_regular
from vaedeploy.system.missing import missing
from vaedeploy.system.oserrors import reason
from vaedeploy.system.places import exists, is_folder, resolved
from vaedeploy.system.text import encodable

TAR = ".tar"

PARQUET = ".parquet"

LISTS = (".txt", ".lst")
"""Suffixes of lists: one path per line, relative to the list's folder."""

NOT_READ = (
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),  # of cameras
    *(".exr", ".hdr", ".ico", ".psd", ".svg", ".tga"),
)
"""Suffixes of pictures that cannot be read here: they count as failures, so that nobody believes them in the cache."""

log = logging.getLogger(__name__)


class Picture(msgspec.Struct, frozen=True):
    """A picture that was found. key: its path below the source, with forward slashes; unique. path: the file's.

    stamp: the file's size in bytes and time of change in nanoseconds. start, size: where in the file it is, in bytes;
    size is None for a whole file. cell: the column, row group and row in it, for a table.
    """

    key: str
    path: str
    stamp: tuple[int, int]
    start: int = 0
    size: int | None = None
    cell: tuple[str, int, int] | None = None

    def read(self) -> bytes:
        """Its bytes. Raises ImageError where the file is not the one that was found, and for a table without the
        picture. BackendError where the system does not give the bytes, as after a disk was unmounted: an ImageError
        would stay in the cache for as long as the file has this stamp.
        """
        try:
            handle = open_regular(self.path)
            try:
                if stamp_of(os.fstat(handle)) != self.stamp:
                    raise ImageError(f"{self.key} has changed since this run began. Run the command again")
                if self.cell is not None:
                    return parquet.cell(self.path, self.stamp, *self.cell)
                return handle_bytes(handle, self.stamp[0] if self.size is None else self.size, self.start)
            finally:
                os.close(handle)
        except OSError as error:
            raise BackendError(
                f"{self.key} could be read when this run began, and cannot be read now: {reason(error)}. Run the "
                "command again; if it fails again, take the picture out of the source"
            ) from error
        except parquet.ParquetError as error:
            raise ImageError(f"{self.key} cannot be read: {error}") from error


Found = Iterator[Picture | FailedPicture]


def find_pictures(source: Path, leave_out: Path, column: str) -> Found:
    """The pictures of a source, and what cannot be read there, in no particular order.

    source: a folder, with all folders in it; a list of files, .txt or .lst; a tar file; or a parquet file. Those in
        folders and lists are looked into as well. leave_out: a folder to skip, where the cache is written. column: the
        column of parquet files with the pictures.

    A file is a picture where its name or its first bytes say so; hidden files and others are left out. Raises
    InputError for a source that is missing or none of these.
    """
    suffix = source.suffix.lower()
    if is_folder(source):
        return _of_folder(source, resolved(leave_out), column)
    if not exists(source):
        raise InputError(missing("file or folder", source))
    if suffix == TAR:
        return _of_tar(source, "")
    if suffix == PARQUET:
        return _of_parquet(source, "", column)
    if suffix in LISTS:
        return _of_list(source, column)
    raise InputError(
        f"{source} is not a source of pictures: give a folder, a list of files ({' or '.join(LISTS)}), or a {TAR} or "
        f"{PARQUET} file"
    )


def _of_folder(source: Path, leave_out: Path, column: str) -> Found:
    others = 0
    seen: set[tuple[int, int]] = set()
    waiting = [(source, "")]
    while waiting:
        folder, prefix = waiting.pop()
        try:
            there = folder.stat()
            if (there.st_dev, there.st_ino) in seen or resolved(folder) == leave_out:  # a link to a folder above it
                continue
            seen.add((there.st_dev, there.st_ino))
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield FailedPicture(encodable(prefix) or ".", f"the folder cannot be read: {reason(error)}")
            continue
        for entry in found:
            if entry.name.startswith("."):
                others += 1
            elif entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and is_folder(entry.path)):
                waiting.append((Path(entry.path), f"{prefix}{entry.name}/"))
            else:
                one = 0
                for picture in _of_file(Path(entry.path), prefix + entry.name, column):
                    one += 1
                    yield picture
                others += not one
    if others:
        log.info("left out of %s: %d hidden or other files", source, others)


def _of_file(path: Path, name: str, column: str, *, surely: bool = False) -> Found:
    """The picture in a file, those in a tar or parquet file, or nothing.

    surely: whether the file was named, and so must be one.
    """
    key = encodable(name)
    suffix = path.suffix.lower()
    if suffix == TAR:
        yield from _of_tar(path, f"{key}/")
        return
    if suffix == PARQUET:
        yield from _of_parquet(path, f"{key}/", column)
        return
    try:
        handle = open_regular(path)
    except OSError as error:
        if surely or suffix in picture_suffixes():
            yield FailedPicture(key, f"it cannot be read: {reason(error)}")
        return
    with os.fdopen(handle, "rb") as file:
        if surely or suffix in picture_suffixes() or is_image(file):
            yield Picture(key, str(path.absolute()), stamp_of(os.fstat(handle)))


def picture_suffixes() -> tuple[str, ...]:
    """Suffixes of files that must be pictures: one that cannot be read is a failure, not another kind of file."""
    return (*image_suffixes(), *(suffix for plugin in PLUGINS.values() for suffix in plugin.suffixes), *NOT_READ)


def _of_list(source: Path, column: str) -> Found:
    try:
        lines = source.read_text(encoding="utf-8-sig").split("\n")  # names may have Unicode's other line ends
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not a list of files in UTF-8: {error}") from error
    except OSError as error:
        raise InputError(f"{source} cannot be read: {reason(error)}") from error
    seen = set()
    for line in filter(None, (line.strip(" \t") for line in lines)):
        if line in seen:
            continue
        seen.add(line)
        inside = PurePosixPath(Path(line).as_posix())
        # A key must not leave the folder that an exporter writes to.
        key = "/".join(part for part in inside.parts if part not in ("..", inside.anchor))
        path = source.parent / line
        if is_folder(path):
            yield FailedPicture(key, "it is a folder; a list has files. Give the folder itself")
        elif not exists(path):
            yield FailedPicture(key, "there is no such file")
        else:
            yield from _of_file(path, key, column, surely=True)


def _of_tar(path: Path, prefix: str) -> Found:
    """The pictures of a tar file. Members are read in place, and never written anywhere under their names."""
    name = prefix.rstrip("/") or encodable(path.name)
    try:
        handle = open_regular(path)
    except OSError as error:
        yield FailedPicture(name, f"it cannot be read: {reason(error)}")
        return
    with os.fdopen(handle, "rb") as file:
        stamp = stamp_of(os.fstat(handle))
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.size < 0:  # the library would go back, and find the same members for ever
                        raise tarfile.ReadError(f"a member has {member.size} bytes")
                    yield from _of_member(tar, member, path, stamp, prefix)
                # The library stops silently at a header that is cut off or broken. A whole file ends in zeros.
                if any(handle_bytes(handle, tarfile.BLOCKSIZE, tar.offset)):
                    yield FailedPicture(name, f"the tar file is truncated or broken from byte {tar.offset:,} on")
        except tarfile.TarError as error:
            compressed = " Decompress it first" if stamp[0] and _is_compressed(handle) else ""
            yield FailedPicture(name, f"it is not a tar file, or is truncated or broken: {error}.{compressed}")


def _of_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, stamp: tuple[int, int], prefix: str) -> Found:
    inside = PurePosixPath(member.name)
    key = encodable(prefix + "/".join(part for part in inside.parts if part not in (".", "..", inside.anchor)))
    looks = inside.suffix.lower() in picture_suffixes()
    if inside.name.startswith(".") or member.isdir():
        return
    if not member.isreg() or member.issparse():
        if looks:
            yield FailedPicture(key, "it is a link or another non-file in its tar file")
        return
    if not looks:
        content = tar.extractfile(member)
        if content is None or not is_image(content):
            return
    if inside.is_absolute() or ".." in inside.parts:
        yield FailedPicture(key, f"its path in the tar file, {encodable(member.name)}, leads out of it")
    elif member.offset_data + member.size > stamp[0]:
        yield FailedPicture(key, "its tar file is truncated")
    else:
        yield Picture(key, str(path.absolute()), stamp, member.offset_data, member.size)


def _of_parquet(path: Path, prefix: str, column: str) -> Found:
    """The pictures of a parquet file. Their keys are row numbers."""
    name = prefix.rstrip("/") or encodable(path.name)
    try:
        stamp = stamp_of(path.stat())
        for number, (group, row, there) in enumerate(parquet.rows(str(path), column)):
            key = f"{prefix}{number:09}"
            if there:
                yield Picture(key, str(path.absolute()), stamp, cell=(column, group, row))
            else:
                yield FailedPicture(key, f"its row of {name} has no bytes in the column {column!r}")
    except OSError as error:
        yield FailedPicture(name, f"it cannot be read: {reason(error)}")
    except parquet.ParquetError as error:
        yield FailedPicture(name, str(error))


def _is_compressed(handle: int) -> bool:
    return handle_bytes(handle, 4)[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5")


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """The size of a file in bytes, and its time of change in nanoseconds."""
    return status.st_size, status.st_mtime_ns
