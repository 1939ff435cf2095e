"""Bundles are made in one step or not at all, whoever else writes there and however a run ends."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_folders import FILES, HOLD, LATENT, contents, names, script, small_files
from tiny_bundle import tiny_bundle, tiny_manifest

from vaedeploy.bundle import Bundle, check_bundle, create_bundle
from vaedeploy.errors import BundleError, OutputError
from vaedeploy.runtime import VAE
from vaedeploy.system.atomic import replace_directory
from vaedeploy.system.lock import lock


def test_rights_are_what_the_umask_leaves(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with create_bundle(tmp_path / "tiny") as draft:
            for part in ("encoder", "decoder"):
                (draft.path / f"{part}.onnx").write_bytes(b"x")
                (draft.path / f"{part}.onnx").chmod(0o600)
            draft.finish(tiny_manifest(LATENT))
    finally:
        os.umask(old)
    assert (tmp_path / "tiny").stat().st_mode & 0o777 == 0o750
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "tiny").iterdir()} == {0o640}


@pytest.mark.parametrize("out", ["hf://owner/name", Path("hf://owner/name@main")])
def test_no_folder_is_named_as_an_address(out: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = r"^hf:/owner/name(@main)? is on the hub\. Choose a folder with --out, then run: vaedeploy push FOLDER"
    with pytest.raises(OutputError, match=message), create_bundle(out):
        pass
    assert not list(tmp_path.iterdir())


def test_missing_parents_are_made(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "a" / "b" / "tiny")
    assert names(tmp_path / "a" / "b") == [f"tiny/{name}" for name in FILES]


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    tiny_bundle(tmp_path / "tiny")
    assert names(tmp_path / "tiny") == FILES


def test_link_to_a_bundle_stays_a_link(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle.path)
    tiny_bundle(tmp_path / "link", seed=5, force=True)
    assert (tmp_path / "link").is_symlink()
    assert Bundle.open(bundle.path).manifest.files != bundle.manifest.files


def test_no_bundle_is_made_in_a_bundle(bundle: Bundle) -> None:
    with (
        pytest.raises(OutputError, match=f"{bundle.path} is a bundle, and another file would damage it"),
        create_bundle(bundle.path / "more" / "new"),
    ):
        pass
    bundle.check()


def test_bundle_is_not_replaced_without_force(bundle: Bundle) -> None:
    before = contents(bundle.path)
    with pytest.raises(OutputError) as caught:
        tiny_bundle(bundle.path, seed=5)
    assert str(caught.value) == (
        f"{bundle.path} exists already. Replace it with --force (force=True in Python), or choose another place "
        "with --out (out=)"
    )
    assert contents(bundle.path.parent) == {f"tiny/{name}": data for name, data in before.items()}


def test_force_replaces_a_bundle_and_leaves_nothing_of_it(bundle: Bundle) -> None:
    (bundle.path / "surplus").write_text("x")
    new = tiny_bundle(bundle.path, seed=5, force=True)
    assert Bundle.open(bundle.path) == new
    assert new.manifest.files != bundle.manifest.files
    assert names(bundle.path.parent) == [f"tiny/{name}" for name in FILES]


def test_force_replaces_a_damaged_bundle(bundle: Bundle) -> None:
    manifest = bundle.path / "bundle.json"
    manifest.write_bytes(manifest.read_bytes()[:200])
    (bundle.path / "decoder.onnx").unlink()
    assert Bundle.open(tiny_bundle(bundle.path, force=True).path).verified


@pytest.mark.parametrize("kind", ["file", "folder", "other bundle.json", "empty bundle.json"])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_a_bundle_is_left_alone(tmp_path: Path, kind: str, force: bool) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "precious").write_text("precious")
        if kind == "other bundle.json":
            (out / "bundle.json").write_text('{"format": "umd", "entry": "main.js"}')
        if kind == "empty bundle.json":
            (out / "bundle.json").write_text("")
    before = contents(tmp_path)
    with pytest.raises(OutputError) as caught:
        tiny_bundle(out, force=force)
    assert (
        str(caught.value) == f"{out} exists and is not a bundle; it is left as it is. Choose another place with --out"
    )
    assert contents(tmp_path) == before
    assert out.exists()


def write_draft(out: Path, *files: str, error: type[BaseException] | None = None, also: Path | None = None) -> None:
    """Write a draft with ``files`` and a file ``also`` elsewhere, then raise ``error`` or finish the draft."""
    with create_bundle(out, force=True) as draft:
        for name in files:
            (draft.path / name).write_bytes(b"x")
        if also:
            also.write_text("precious")
        if error:
            raise error
        draft.finish(tiny_manifest(LATENT))


def test_what_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="exists and is not a bundle; it is left as it is"):
        write_draft(out, "encoder.onnx", "decoder.onnx", also=out)
    assert contents(tmp_path) == {"out": b"precious"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("parents", ["", "a/b"])
def test_what_is_raised_leaves_nothing_behind(tmp_path: Path, error: type[BaseException], parents: str) -> None:
    with pytest.raises(error):
        write_draft(tmp_path / parents / "tiny", "encoder.onnx", error=error)
    assert list(tmp_path.iterdir()) == []


def test_what_is_raised_leaves_the_old_bundle(bundle: Bundle) -> None:
    before = contents(bundle.path.parent)
    with pytest.raises(KeyboardInterrupt):
        write_draft(bundle.path, "encoder.onnx", error=KeyboardInterrupt)
    assert contents(bundle.path.parent) == before


def test_draft_that_is_not_finished_is_dropped(tmp_path: Path) -> None:
    with create_bundle(tmp_path / "tiny") as draft:
        (draft.path / "encoder.onnx").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_manifest_that_names_a_graph_it_does_not_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        write_draft(tmp_path / "tiny", "encoder.onnx")
    assert str(caught.value) == (
        f"bundle {tmp_path / 'tiny'}: bundle.json names the graph decoder.onnx but not among its files"
    )
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    cases = {
        tmp_path / "file" / "tiny": "a file is where a folder is needed. Choose another place",
        Path("/proc/tiny"): "No such file or directory. Make its folder first, or choose another place",
        tmp_path / ("n" * 300): "File name too long. Choose another place",
    }
    for out, why in cases.items():
        with pytest.raises(OutputError) as caught:
            tiny_bundle(out)
        assert str(caught.value) == f"cannot write bundle {out}: {why}"
    with pytest.raises(OutputError) as caught:
        tiny_bundle(Path("/"), force=True)
    assert str(caught.value) == "/ cannot be a bundle. Choose another place with --out"
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_the_right_to_write(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OutputError) as caught:
        tiny_bundle(tmp_path / "closed" / "tiny")
    assert (
        str(caught.value) == f"cannot write bundle {tmp_path / 'closed/tiny'}: Permission denied. Choose another place"
    )


def full_disk(bundle: Path) -> str:
    return (
        f"vaedeploy.errors.OutputError: cannot write bundle {bundle}: no room is left there. Nothing was kept. "
        "Free space there, or choose another place with --out"
    )


def too_large(bundle: Path) -> str:
    return (
        f"vaedeploy.errors.OutputError: cannot write bundle {bundle}: a file there may not become that large. Nothing "
        "was kept. Raise the limit (ulimit -f, or the file system's own), or choose another place with --out"
    )


WRITERS = {
    "plain": "(draft.path / 'encoder.onnx').write_bytes(bytes(100_000))",
    "onnx": "import onnx, tiny_bundle as t\n"
    "    t._save(t._encoder(LatentSpec(channels=999, factor=4, scale=1.0), 'float', 0), draft.path / 'encoder.onnx')",
    "safetensors": "import numpy as np, safetensors.numpy\n"
    "    safetensors.numpy.save_file({'x': np.zeros(99_999)}, draft.path / 'golden.safetensors')",
    "cause": "try: (draft.path / 'encoder.onnx').write_bytes(bytes(100_000))\n"
    "    except OSError as error: raise RuntimeError('the exporter failed') from error",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_limit_on_files_leaves_nothing(tmp_path: Path, writer: str) -> None:
    body = f"with create_bundle(out) as draft:\n    {WRITERS[writer]}\n"
    with script(body, tmp_path / "tiny", preexec_fn=small_files) as process:
        errors = process.communicate()[1]
    assert errors.splitlines()[-1] == too_large(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_limit_on_files_leaves_the_old_bundle(bundle: Bundle) -> None:
    before = contents(bundle.path.parent)
    body = f"with create_bundle(out, force=True) as draft:\n    {WRITERS['plain']}\n"
    with script(body, bundle.path, preexec_fn=small_files) as process:
        errors = process.communicate()[1]
    assert errors.splitlines()[-1] == too_large(bundle.path)
    assert contents(bundle.path.parent) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_device_that_is_full_is_told_alike(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:  # noqa: SIM117
        with create_bundle(tmp_path / "tiny"), open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
            full.write(b"x")
    assert full_disk(tmp_path / "tiny").endswith(str(caught.value))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_second_export_to_the_same_place_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    with script(HOLD, out) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "writing\n"
        with pytest.raises(OutputError) as caught:
            tiny_bundle(out)
        with script("tiny_bundle(out, force=True)", out) as second:
            told = second.communicate()[1].splitlines()[-1]
        first.communicate("go on\n")
    message = (
        f"cannot write bundle {out}: another process is writing it now. Wait until it is done, or choose another place "
        "with --out"
    )
    assert str(caught.value) == message
    assert told == f"vaedeploy.errors.OutputError: {message}"
    assert first.returncode == 0
    assert names(tmp_path) == ["tiny/bundle.json", "tiny/decoder.onnx", "tiny/encoder.onnx"]
    check_bundle(out)


def test_of_many_exports_at_once_each_wins_or_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    processes = [script("tiny_bundle(out, force=True)", out) for _ in range(4)]
    for process in processes:
        with process:
            errors = process.communicate()[1]
        assert process.returncode == 0 or "another process is writing it now" in errors
    assert 0 in {process.returncode for process in processes}
    check_bundle(out)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_killed_export_does_not_block_the_next_and_is_cleared_away(tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    with script(HOLD, out) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
    assert not out.exists()
    left = sorted(p.name for p in tmp_path.iterdir())
    assert len(left) == 2
    assert left[1] == ".tiny.lock"
    tiny_bundle(out)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    with script(HOLD, tmp_path / "tiny") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1]
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert list(tmp_path.iterdir()) == []


ASIDE = ".tiny.0123456789ab.old"


@pytest.mark.parametrize("find", [Bundle.open, check_bundle, VAE])
def test_bundle_that_was_set_aside_is_found(bundle: Bundle, find: Callable[[Path], object]) -> None:
    before = contents(bundle.path)
    bundle.path.rename(bundle.path.with_name(ASIDE))
    find(bundle.path)
    assert contents(bundle.path.parent) == {f"tiny/{name}": data for name, data in before.items()}


def test_bundle_is_waited_for_while_another_process_replaces_it(bundle: Bundle) -> None:
    bundle.path.rename(bundle.path.with_name(ASIDE))
    with lock(bundle.path.with_name(".tiny.lock")):
        writer = threading.Timer(0.05, lambda: bundle.path.with_name(ASIDE).rename(bundle.path))
        writer.start()
        assert Bundle.open(bundle.path) == bundle
        writer.join()


def test_bundle_that_was_set_aside_and_cannot_be_put_back_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder that may only be read."""
    monkeypatch.setattr("vaedeploy.bundle.stored.PATIENCE", 0.0)
    bundle.path.rename(bundle.path.with_name(ASIDE))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == (
        f"there is no bundle at {bundle.path}. A process that was killed while it replaced it left it as "
        f"{bundle.path.with_name(ASIDE)}; rename that to tiny"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other systems rename twice")
def test_there_is_a_bundle_at_every_moment(bundle: Bundle) -> None:
    missing, done = [], threading.Event()

    def look() -> None:
        while not done.is_set():
            if not (bundle.path / "bundle.json").exists():
                missing.append("gone")

    watcher = threading.Thread(target=look)
    watcher.start()
    for seed in range(20):
        tiny_bundle(bundle.path, seed=seed, force=True)
    done.set()
    watcher.join()
    assert missing == []


def test_bundle_that_a_killed_run_had_set_aside_comes_back(bundle: Bundle) -> None:
    before = contents(bundle.path)
    bundle.path.rename(bundle.path.with_name(ASIDE))
    with pytest.raises(OutputError, match="exists already"):
        tiny_bundle(bundle.path)
    assert contents(bundle.path) == before
    shutil.copytree(bundle.path, bundle.path.with_name(".tiny.0123456789ab.old"))
    tiny_bundle(bundle.path, force=True)
    assert [p.name for p in bundle.path.parent.iterdir()] == ["tiny"]


def test_leftovers_of_other_bundles_are_not_touched(tmp_path: Path) -> None:
    others = {".tiny2.0123456789ab.tmp", ".tiny.notes.tmp", ".tiny.0123456789ab.tmp.old", "tiny.0123456789ab.tmp"}
    for name in others:
        (tmp_path / name).mkdir()
    tiny_bundle(tmp_path / "tiny")
    assert {p.name for p in tmp_path.iterdir()} == {*others, "tiny"}


def test_bundles_are_replaced_where_no_two_can_change_places(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems than Linux, and some of its file systems."""
    monkeypatch.setattr("vaedeploy.system.atomic.exchange", lambda one, other: False)
    new = tiny_bundle(bundle.path, seed=5, force=True)
    assert check_bundle(bundle.path) == new
    assert [p.name for p in bundle.path.parent.iterdir()] == ["tiny"]


def test_old_bundle_is_put_back_where_the_new_one_cannot_be(bundle: Bundle) -> None:
    before = contents(bundle.path.parent)
    with pytest.raises(FileNotFoundError):
        replace_directory(bundle.path.with_name("nothing"), bundle.path)
    assert contents(bundle.path.parent) == before
