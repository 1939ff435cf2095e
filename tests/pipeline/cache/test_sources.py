"""Where pictures are found: folders, lists and tar files."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from data_sets import data_set, picture

import vaedeploy as vd
from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, ImageError, InputError
from vaedeploy.images.cache_format import FailedPicture
from vaedeploy.pipeline.cache import parquet
from vaedeploy.pipeline.cache.sources import Picture, find_pictures

ELSEWHERE = Path("/nowhere")


def found(source: Path, leave_out: Path = ELSEWHERE) -> tuple[list[str], dict[str, str]]:
    """The keys of a source's pictures, sorted, and what failed there."""
    pictures = list(find_pictures(source, leave_out, "image"))
    keys = sorted(one.key for one in pictures if isinstance(one, Picture))
    return keys, {one.key: one.reason for one in pictures if isinstance(one, FailedPicture)}


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file with these files."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    return picture(tmp_path / "one/a.png").read_bytes()


# ------------------------------------------------------------------------------------------------------------- folders


def test_links_are_followed_once(tmp_path: Path) -> None:
    picture(tmp_path / "photos/a.png")
    picture(tmp_path / "elsewhere/b.png")
    (tmp_path / "photos/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/around").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/c.png").symlink_to(tmp_path / "elsewhere/b.png")
    assert found(tmp_path / "photos") == (["a.png", "c.png", "linked/b.png"], {})


def test_the_cache_itself_is_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "photos/a.png")
    picture(tmp_path / "photos/latents/b.png")
    assert found(tmp_path / "photos", tmp_path / "photos/latents")[0] == ["a.png"]


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    keys, failed = found(tmp_path)
    assert keys == []
    assert failed == {
        "gone.png": "it cannot be read: No such file or directory",
        "pipe.png": "it cannot be read: it is not a regular file",
    }


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"a\xff.png"))
    (one,) = find_pictures(tmp_path, ELSEWHERE, "image")
    assert isinstance(one, Picture)
    assert one.key == "a\\xff.png"
    assert one.read().startswith(b"\x89PNG")


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_folders_and_files_that_may_not_be_read() -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        top.chmod(0o755)
        picture(top / "a.png")
        picture(top / "b.png").chmod(0)
        picture(top / "more/c.png")
        (top / "more").chmod(0)
        os.seteuid(65534)
        try:
            keys, failed = found(top)
        finally:
            os.seteuid(0)
    assert keys == ["a.png"]
    assert failed == {
        "b.png": "it cannot be read: Permission denied",
        "more/": "the folder cannot be read: Permission denied",
    }


def test_links_that_lead_nowhere_and_lines_that_are_too_long_end_nothing(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    (tmp_path / "in/loop.png").symlink_to("loop.png")
    (tmp_path / "in/loop").symlink_to("loop")
    assert found(tmp_path / "in") == (["a.png"], {"loop.png": "it cannot be read: Too many levels of symbolic links"})
    (tmp_path / "list.txt").write_text(f"in/a.png\nin/loop.png\n{'x' * 300}\n")
    nothing = "there is no such file"
    assert found(tmp_path / "list.txt") == (["in/a.png"], {"in/loop.png": nothing, "x" * 300: nothing})


def test_a_file_that_has_changed_is_not_read(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    (one,) = find_pictures(tmp_path, ELSEWHERE, "image")
    assert isinstance(one, Picture)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ImageError, match=r"a\.png has changed since this run began"):
        one.read()
    path.unlink()
    with pytest.raises(BackendError, match=r"a\.png could be read .*, and cannot be read now: No such file .*Run the"):
        one.read()


# --------------------------------------------------------------------------------------------------------------- lists


def test_a_list(tmp_path: Path) -> None:
    absolute = picture(tmp_path / "far/away/b.jpg")
    picture(tmp_path / "lists/more/a.png")
    picture(tmp_path / "c.png")
    (tmp_path / "lists/notes.json").touch()
    picture(tmp_path / "lists/two\N{LINE SEPARATOR}lines.png")
    lines = ["more/a.png", "", f"{absolute} ", "../c.png", "more/a.png\r", "gone.png", "more", "notes.json"]
    lines += ["two\N{LINE SEPARATOR}lines.png"]
    (tmp_path / "lists/list.txt").write_text("\n".join(lines))
    keys, failed = found(tmp_path / "lists/list.txt")
    assert keys == sorted(
        ["more/a.png", str(absolute).lstrip("/"), "c.png", "notes.json", "two\N{LINE SEPARATOR}lines.png"]
    )
    assert failed == {
        "gone.png": "there is no such file",
        "more": "it is a folder; a list has files. Give the folder itself",
    }


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(InputError, match=r"a\.txt is not a list of files in UTF-8"):
        found(tmp_path / "a.txt")


# ----------------------------------------------------------------------------------------------------------- tar files


def test_a_tar_file_of_webdatasets(png: bytes, tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "0.tar", {"a.png": png, "a.txt": b"a cat", "b/c.jpg": png, "b/c.json": b"{}", "d": png})
    assert found(tar) == (["a.png", "b/c.jpg", "d"], {})
    for one in find_pictures(tar, ELSEWHERE, "image"):
        assert isinstance(one, Picture)
        assert one.read() == png


def test_tar_files_in_a_folder(png: bytes, tmp_path: Path) -> None:
    folder = data_set(tmp_path / "photos", 1)
    for number in (0, 1):
        tar_of(folder / f"{number}.tar", {"a.png": png})
    assert found(folder) == (["0.tar/a.png", "000.png", "1.tar/a.png"], {})


def test_latents_of_a_tar_file_are_those_of_its_pictures(bundle: Bundle, tmp_path: Path) -> None:
    photos = data_set(tmp_path / "photos", 4)
    members = {path.relative_to(photos).as_posix(): path.read_bytes() for path in photos.rglob("*.png")}
    members["empty.png"] = b""
    cached = vd.cache_latents(bundle, tar_of(tmp_path / "a.tar", members), tmp_path / "of-tar", size=(16, 16))
    vd.cache_latents(bundle, photos, tmp_path / "of-folder", size=(16, 16))
    assert cached.failures == (FailedPicture("empty.png", "empty.png is empty (0 bytes)"),)
    tars, folders = vd.LatentCache(tmp_path / "of-tar"), vd.LatentCache(tmp_path / "of-folder")
    assert tars.keys == folders.keys
    assert all((tars[key].mean == folders[key].mean).all() for key in folders.keys)


def test_paths_that_leave_the_tar_file(png: bytes, tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "a.tar", {"../a.png": png, "b/../../c.png": png, "good.png": png})
    with tarfile.open(tar, "a") as more:
        absolute, link = tarfile.TarInfo("/etc/d.png"), tarfile.TarInfo("e.png")
        absolute.size = len(png)
        more.addfile(absolute, io.BytesIO(png))
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        more.addfile(link)
    keys, failed = found(tar)
    assert keys == ["good.png"]
    assert failed == {
        "a.png": "its path in the tar file, ../a.png, leads out of it",
        "b/c.png": "its path in the tar file, b/../../c.png, leads out of it",
        "etc/d.png": "its path in the tar file, /etc/d.png, leads out of it",
        "e.png": "it is a link or another non-file in its tar file",
    }


def test_tar_files_that_are_broken(png: bytes, tmp_path: Path) -> None:
    data = tar_of(tmp_path / "a.tar", {"a.png": png, "b.png": png}).read_bytes()
    second = data.index(b"b.png")
    (tmp_path / "cut.tar").write_bytes(data[: second + 1000])
    (tmp_path / "head.tar").write_bytes(data[: second + 100])
    (tmp_path / "zip.tar").write_bytes(gzip.compress(data))
    (tmp_path / "none.tar").write_bytes(b"no tar file" * 100)
    assert found(tmp_path / "cut.tar")[0] == ["a.png"]
    assert found(tmp_path / "cut.tar")[1]["b.png"] == "its tar file is truncated"
    keys, failed = found(tmp_path / "head.tar")
    assert keys == ["a.png"]
    assert failed == {"head.tar": f"the tar file is truncated or broken from byte {second:,} on"}
    assert found(tmp_path / "zip.tar")[1]["zip.tar"].endswith("Decompress it first")
    assert "it is not a tar file" in found(tmp_path / "none.tar")[1]["none.tar"]


# ------------------------------------------------------------------------------------------------------- parquet files


def parquet_of(path: Path, columns: dict[str, list[object]], rows: int = 2) -> Path:
    """A parquet file with these columns, ``rows`` rows in a group."""
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(arrow.table(columns), path, row_group_size=rows)
    return path


def test_a_parquet_file(bundle: Bundle, tmp_path: Path) -> None:
    photos = data_set(tmp_path / "photos", 5)
    data = [path.read_bytes() for path in sorted(photos.rglob("*.png"), key=lambda path: path.name)]
    structs = [{"bytes": one, "path": None} for one in data]
    table = parquet_of(tmp_path / "a.parquet", {"image": [*structs, None], "plain": [*data, b""], "text": ["a"] * 6})
    cached = vd.cache_latents(bundle, table, tmp_path / "of-structs", dtype="float32", shard=1)
    assert cached.failures == (FailedPicture("000000005", "its row of a.parquet has no bytes in the column 'image'"),)
    cache = vd.LatentCache(tmp_path / "of-structs")
    assert sorted(cache.keys) == [f"{number:09}" for number in range(5)]
    plain = vd.cache_latents(bundle, table, tmp_path / "of-bytes", dtype="float32", column="plain")
    assert plain.failures == (FailedPicture("000000005", "000000005 is empty (0 bytes)"),)
    of_bytes = vd.LatentCache(tmp_path / "of-bytes")
    vd.cache_latents(bundle, photos, tmp_path / "of-files", dtype="float32")
    for latent in vd.LatentCache(tmp_path / "of-files"):
        key = f"{int(Path(latent.key).stem):09}"
        assert (cache[key].mean == latent.mean).all()
        assert (of_bytes[key].mean == latent.mean).all()


def test_parquet_files_that_cannot_be_read(tmp_path: Path) -> None:
    table = parquet_of(tmp_path / "a.parquet", {"image": ["words"], "label": [1]})
    assert found(table)[1] == {
        "a.parquet": "its column 'image' is string; pictures are bytes, or a struct with a field 'bytes'"
    }
    table = parquet_of(tmp_path / "a.parquet", {"picture": [b""], "label": [1]})
    told = "it has no column 'image'; it has picture, label. Name the column of pictures with --column"
    assert found(table)[1] == {"a.parquet": told}
    table.write_bytes(table.read_bytes()[:-5])
    assert "it is not a parquet file, or is truncated or broken" in found(tmp_path)[1]["a.parquet"]


def test_threads_that_want_one_group_read_it_once(tmp_path: Path) -> None:
    table = parquet_of(tmp_path / "a.parquet", {"image": [bytes([row]) * 1000 for row in range(32)]}, rows=8)
    begin = threading.Barrier(8)

    def read(row: int) -> bytes:
        begin.wait(60)
        return parquet.cell(str(table), (0, 0), "image", row // 8, row % 8)

    parquet._group.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(32))) == [bytes([row]) * 1000 for row in range(32)]
    assert parquet._group.cache_info().misses == 4


def test_a_member_of_negative_size_ends_its_tar_file(tmp_path: Path, png: bytes) -> None:
    """The library would find the same member for ever."""
    data = bytearray(tar_of(tmp_path / "a.tar", {"a.png": png, "b.png": b""}).read_bytes())
    begin = data.index(b"b.png")
    header = data[begin : begin + 512]
    header[124:136] = (-512).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    data[begin : begin + 512] = header
    (tmp_path / "a.tar").write_bytes(data)
    keys, failed = found(tmp_path / "a.tar")
    assert keys == ["a.png"]
    assert failed == {"a.tar": "it is not a tar file, or is truncated or broken: a member has -512 bytes."}
