"""Bundles: made in one step or not at all, and refused when they are not what their manifest says."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from tiny_bundle import FAILED, PASSED, tiny_bundle, tiny_manifest

from vaedeploy.bundle import Bundle, check_bundle, create_bundle
from vaedeploy.bundle.manifest import (
    EngineIdentity,
    EngineInfo,
    FileInfo,
    Manifest,
    VaeInfo,
    Verification,
    decode_manifest,
    encode_manifest,
    path_fault,
)
from vaedeploy.errors import BundleError, OutputError
from vaedeploy.system.atomic import replace_directory
from vaedeploy.system.lock import lock
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.origin import Origin
from vaedeploy.values.shapes import ShapeSet

LATENT = LatentSpec(channels=2, factor=4, scale=1.0)
FILES = ["bundle.json", "decoder.onnx", "decoder.onnx.data", "encoder.onnx", "encoder.onnx.data"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "tiny")


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest on disk, as JSON."""
    told = json.loads((bundle.path / "bundle.json").read_text())
    change(told)
    (bundle.path / "bundle.json").write_text(json.dumps(told))


def again(bundle: Bundle) -> str:
    return f"Export it again: vaedeploy export --vae sd15 --weights random:0 --out {bundle.path} --force"


# Making one


def test_bundle_is_opened_as_it_was_made(bundle: Bundle) -> None:
    opened = Bundle.open(bundle.path)
    assert opened == bundle
    assert opened.verified
    assert names(bundle.path) == FILES
    assert sorted(opened.manifest.files) == FILES[1:]
    assert opened.graph("decoder", "onnxruntime") == opened.graph("decoder") == bundle.path / "decoder.onnx"
    assert names(bundle.path.parent) == [f"tiny/{name}" for name in FILES]
    check_bundle(bundle.path)


def test_hashes_are_what_sha256sum_says(bundle: Bundle) -> None:
    done = subprocess.run(["sha256sum", *FILES[1:]], cwd=bundle.path, capture_output=True, text=True, check=True)
    told = [f"{bundle.manifest.files[name].sha256}  {name}" for name in FILES[1:]]
    assert done.stdout.splitlines() == told


def test_other_form_is_preferred_where_there_is_one(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny", onnxruntime_form=True)
    assert bundle.graph("decoder", "onnxruntime").name == "decoder.ort.onnx"
    assert bundle.graph("decoder").name == "decoder.onnx"
    assert bundle.graph("encoder", "onnxruntime").name == "encoder.onnx"


def test_unknown_file_is_told(bundle: Bundle) -> None:
    assert bundle.file("encoder.onnx") == bundle.path / "encoder.onnx"
    with pytest.raises(BundleError) as caught:
        bundle.file("golden.safetensors")
    assert str(caught.value) == f"bundle {bundle.path} has no golden.safetensors; it has {', '.join(FILES[1:])}"


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
        tmp_path / "file" / "tiny": "there is a file where a folder has to be. Choose another place",
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


# Full disks and other processes

HELPER = ROOT / "tests" / "support"
SCRIPT = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(HELPER)!r})
from tiny_bundle import LatentSpec, create_bundle, tiny_bundle, tiny_manifest
out = Path(sys.argv[1])
"""


def script(body: str, out: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-B", "-c", SCRIPT + body, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


HOLD = """
with create_bundle(out, force=True) as draft:
    (draft.path / "encoder.onnx").write_bytes(b"x")
    (draft.path / "decoder.onnx").write_bytes(b"x")
    print("writing", flush=True)
    sys.stdin.readline()
    draft.finish(tiny_manifest(LatentSpec(channels=2, factor=4, scale=1.0)))
"""


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


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


def test_bundle_that_a_killed_run_had_set_aside_comes_back(bundle: Bundle) -> None:
    before = contents(bundle.path)
    bundle.path.rename(bundle.path.with_name(".tiny.0123456789ab.old"))
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


def test_old_bundle_is_put_back_where_the_new_one_cannot_be(bundle: Bundle) -> None:
    before = contents(bundle.path.parent)
    with pytest.raises(FileNotFoundError):
        replace_directory(bundle.path.with_name("nothing"), bundle.path)
    assert contents(bundle.path.parent) == before


def test_lock_holds_between_threads_and_lapses(tmp_path: Path) -> None:
    with lock(tmp_path / "lock") as first, lock(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    assert list(tmp_path.iterdir()) == []
    with lock(tmp_path / "lock") as third:
        assert third


# Opening one that is damaged


def test_every_fault_of_the_files_is_listed(bundle: Bundle) -> None:
    (bundle.path / "encoder.onnx").unlink()
    data = bundle.path / "decoder.onnx.data"
    size = data.stat().st_size
    data.write_bytes(data.read_bytes()[:-1])
    graph = bundle.path / "decoder.onnx"
    altered = bytearray(graph.read_bytes())
    altered[50] ^= 1
    graph.write_bytes(altered)
    told = bundle.manifest.files["decoder.onnx"].sha256
    found = subprocess.run(["sha256sum", graph], capture_output=True, text=True, check=True).stdout.split()[0]
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == (
        f"bundle {bundle.path} is damaged: \n"
        f"  decoder.onnx is altered: its sha256 is {found} where bundle.json says {told}\n"
        f"  decoder.onnx.data has {size - 1:,} bytes where bundle.json says {size:,}\n"
        f"  encoder.onnx is missing\n{again(bundle)}"
    )


def test_one_fault_is_told_on_one_line(bundle: Bundle) -> None:
    (bundle.path / "encoder.onnx").unlink()
    for open_bundle in (Bundle.open, check_bundle):
        with pytest.raises(BundleError) as caught:
            open_bundle(bundle.path)
        assert str(caught.value) == f"bundle {bundle.path} is damaged: encoder.onnx is missing. {again(bundle)}"


def test_without_hashes_an_altered_file_passes_and_a_truncated_one_does_not(bundle: Bundle) -> None:
    graph = bundle.path / "decoder.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    assert Bundle.open(bundle.path, verify_hashes=False) == bundle
    with pytest.raises(BundleError, match=r"decoder\.onnx is altered"):
        Bundle.open(bundle.path)
    graph.write_bytes(b"")
    with pytest.raises(BundleError, match=r"decoder\.onnx has 0 bytes where bundle\.json says"):
        Bundle.open(bundle.path, verify_hashes=False)


def test_a_bundle_prints_in_one_line(bundle: Bundle) -> None:
    assert repr(bundle) == f"Bundle({str(bundle.path)!r}, VAE tiny, fp32, verified)"
    unverified = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, verification=None))
    assert repr(unverified) == f"Bundle({str(bundle.path)!r}, VAE tiny, fp32, unverified)"


@pytest.mark.parametrize("given", [None, 7, b"demo"])
def test_what_is_no_path(given: Any) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(given)
    assert str(caught.value) == (f"the bundle is of type {type(given).__name__}; give its folder (of a Bundle, .path)")


def test_surplus_file_is_found_by_check_only(bundle: Bundle) -> None:
    (bundle.path / "engines").mkdir()
    (bundle.path / "engines" / "notes.txt").write_text("x")
    assert Bundle.open(bundle.path) == bundle
    with pytest.raises(BundleError) as caught:
        check_bundle(bundle.path)
    assert str(caught.value) == (
        f"bundle {bundle.path} is whole, but has files beside its own: engines/notes.txt is not in bundle.json. "
        "Move them elsewhere"
    )


def test_folder_in_a_file_s_place(bundle: Bundle) -> None:
    (bundle.path / "encoder.onnx").unlink()
    (bundle.path / "encoder.onnx").mkdir()
    with pytest.raises(BundleError, match=r"encoder\.onnx is missing"):
        Bundle.open(bundle.path)


def test_link_out_of_the_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "encoder.onnx").rename(tmp_path / "elsewhere.onnx")
    (bundle.path / "encoder.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == (
        f"bundle {bundle.path} is damaged: encoder.onnx leaves the bundle through a link. {again(bundle)}"
    )


def test_bundle_may_itself_be_reached_by_a_link(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle.path)
    assert Bundle.open(tmp_path / "link").manifest == bundle.manifest


MAKE = "Make a bundle with: vaedeploy export --vae NAME --out"


def test_places_without_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "odd" / "bundle.json").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    cases = {
        "none": "there is no bundle at {0}. " + MAKE + " {0}",
        "file": "{0} is a file; a bundle is a folder with a bundle.json in it. Give the folder",
        "folder": "{0} is not a bundle: it has no bundle.json. " + MAKE + " {0}",
        "photos": "{0} is not a bundle: it has no bundle.json. Give a bundle's folder, or make one in another place: "
        "vaedeploy export --vae NAME --out PLACE",
        "odd": "bundle {0}: bundle.json cannot be read: Is a directory",
    }
    for name, message in cases.items():
        with pytest.raises(BundleError) as caught:
            Bundle.open(tmp_path / name)
        assert str(caught.value) == message.format(tmp_path / name)


# Manifests


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (2, "Upgrade: pip install --upgrade vaedeploy"),
        (0, "Export it again: vaedeploy export --vae NAME --out {} --force"),
    ],
)
def test_other_format_versions_are_refused(bundle: Bundle, version: int, advice: str) -> None:
    edit(bundle, lambda told: told.update(format=version, news="unheard of"))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == (
        f"bundle {bundle.path} has format {version}; this vaedeploy knows format 1 only. {advice.format(bundle.path)}"
    )


def cannot_be_used(bundle: Bundle, why: str) -> str:
    return (
        f"bundle {bundle.path}: bundle.json cannot be used: {why}. "
        f"Export it again: vaedeploy export --vae NAME --out {bundle.path} --force"
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda told: told.update(extra=1), "Object contains unknown field `extra`"),
        (lambda told: told["vae"].update(extra=1), "Object contains unknown field `extra` - at `$.vae`"),
        (lambda told: told.pop("latent"), "Object missing required field `latent`"),
        (lambda told: told.pop("format"), "Object missing required field `format`"),
        (lambda told: told.update(precision="int8"), "Invalid enum value 'int8' - at `$.precision`"),
        (lambda told: told["latent"].update(scale=0), "latent scale is 0; dividing by it is impossible"),
        (
            lambda told: told["files"]["encoder.onnx"].update(sha256="abc"),
            "Expected `str` matching regex '^[0-9a-f]{64}$' - at `$.files[...].sha256`",
        ),
        (
            lambda told: told["files"]["encoder.onnx"].update(bytes=-1),
            "Expected `int` >= 0 - at `$.files[...].bytes`",
        ),
    ],
)
def test_manifest_with_wrong_fields_is_refused(
    bundle: Bundle, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == cannot_be_used(bundle, why)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Input data was truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"format": 1, "vaed', "Input data was truncated"),
        (b'{"format": 1} x', "JSON is malformed: trailing characters (byte 15)"),
        (b'{"format": "\xff"}', "Expected `int`, got `str` - at `$.format`"),
        (
            b'{"format": 1, "vaedeploy": "\xff"}',
            "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
    ],
)
def test_manifest_that_is_not_json_is_refused(bundle: Bundle, data: bytes, why: str) -> None:
    (bundle.path / "bundle.json").write_bytes(data)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == cannot_be_used(bundle, why)


BAD_PATHS = {
    "../encoder.onnx": "leaves the bundle",
    "a/../../encoder.onnx": "leaves the bundle",
    "/etc/passwd": "is absolute",
    "C:/encoder.onnx": "has a backslash or a colon",
    "..\\encoder.onnx": "has a backslash or a colon",
    "encoder.onnx:stream": "has a backslash or a colon",
    "": "is empty or has control characters",
    "a\0b": "is empty or has control characters",
    "./encoder.onnx": "is not in its plain form",
    "a//b": "is not in its plain form",
    "a/": "is not in its plain form",
    "a./b": "is not in its plain form",
    "a ": "is not in its plain form",
    "bundle.json": "is the manifest itself",
    "Bundle.JSON": "is the manifest itself",
}


@pytest.mark.parametrize(("name", "fault"), BAD_PATHS.items())
@pytest.mark.parametrize("field", ["files", "graphs"])
def test_paths_that_are_no_place_in_the_bundle_are_refused(bundle: Bundle, name: str, fault: str, field: str) -> None:
    def change(told: dict[str, Any]) -> None:
        if field == "files":
            told["files"][name] = {"sha256": "0" * 64, "bytes": 1}
        else:
            told["graphs"]["encoder"]["portable"] = name

    edit(bundle, change)
    for verify_hashes in (True, False):
        with pytest.raises(BundleError) as caught:
            Bundle.open(bundle.path, verify_hashes)
        assert str(caught.value) == (
            f"bundle {bundle.path}: bundle.json names the path {name!r}, which {fault}; it is refused"
        )


@given(st.lists(st.sampled_from(["a", "b.onnx", "..", ".", "", "é", "x y"]), min_size=1, max_size=5).map("/".join))
def test_path_that_passes_stays_in_the_bundle(name: str) -> None:
    root = Path("/bundle")
    inside = Path(os.path.normpath(root / name))
    if path_fault(name) is None:
        assert inside.is_relative_to(root)
        assert inside != root
        assert inside.relative_to(root).as_posix() == name
    else:
        assert {"..", ".", ""} & set(name.split("/"))


def test_graphs_must_be_there_and_among_the_files(bundle: Bundle) -> None:
    whole = (bundle.path / "bundle.json").read_bytes()
    edit(bundle, lambda told: told["files"].pop("decoder.onnx"))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == (
        f"bundle {bundle.path}: bundle.json names the graph decoder.onnx but not among its files"
    )
    (bundle.path / "bundle.json").write_bytes(whole)
    edit(bundle, lambda told: told["graphs"].pop("decoder"))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == f"bundle {bundle.path}: bundle.json names no portable graph of the decoder"


def test_manifest_round_trip_keeps_every_field(bundle: Bundle) -> None:
    manifest = msgspec.structs.replace(
        bundle.manifest,
        latent=LatentSpec(channels=2, factor=4, scale=(0.1, 1 / 3), shift=(0.5, -1.5)),
        verification=FAILED,
    )
    assert decode_manifest(encode_manifest(manifest), bundle.path) == manifest


def test_worst_value_that_is_not_finite_is_null(bundle: Bundle) -> None:
    worst = msgspec.structs.replace(FAILED, worst={"psnr": float("nan"), "max": 1.5, "mean": float("inf")})
    bundle.update(verification=worst)
    assert json.loads((bundle.path / "bundle.json").read_text())["verification"]["worst"] == {
        "psnr": None,
        "max": 1.5,
        "mean": None,
    }
    opened = Bundle.open(bundle.path).manifest.verification
    assert opened is not None
    assert opened.worst == {"psnr": None, "max": 1.5, "mean": None}


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (Origin("package", "demo", "0" * 64, "demo"), "--vae demo"),
        (Origin("hub", "mse840k", "0" * 64, "mse840k"), "--vae mse840k"),
        (Origin("hub", "some/repository", "0" * 64, "sd15"), "--vae sd15 --weights some/repository"),
        (Origin("hub", "some/repository", "0" * 64, None), "--vae some/repository --scale 1.0 --shift 0.0"),
        (Origin("folder", "/my vae", "0" * 64, None), "--vae '/my vae' --scale 1.0 --shift 0.0"),
        (Origin("file", "/a.ckpt", "0" * 64, "sd15"), "--vae sd15 --weights /a.ckpt"),
        (Origin("random", "random:3", None, "sdxl"), "--vae sdxl --weights random:3"),
    ],
)
def test_what_to_run_names_the_same_weights(bundle: Bundle, origin: Origin, words: str) -> None:
    manifest = msgspec.structs.replace(bundle.manifest, vae=msgspec.structs.replace(bundle.manifest.vae, origin=origin))
    assert manifest.export_command(Path("out")) == f"vaedeploy export {words} --out out --force"
    uint8 = msgspec.structs.replace(manifest, image_input="uint8")
    assert uint8.export_command(Path("out")) == (f"vaedeploy export {words} --image-input uint8 --out out --force")


def test_what_to_run_for_modules_is_python(bundle: Bundle) -> None:
    vae = msgspec.structs.replace(bundle.manifest.vae, origin=Origin("modules", "", None, None))
    assert msgspec.structs.replace(bundle.manifest, vae=vae).export_command(Path("out")) == (
        "vaedeploy.export_vae(..., out='out', force=True), in Python and with your own modules"
    )


# Updating one


def test_update_adds_files_and_sets_the_verification(bundle: Bundle) -> None:
    updated = bundle.update(verification=FAILED, files={"report/report.json": b"{}", "golden.safetensors": b"12345"})
    assert not updated.verified
    assert check_bundle(bundle.path) == updated
    assert sorted(updated.manifest.files) == [*FILES[1:], "golden.safetensors", "report/report.json"]
    assert updated.file("report/report.json").read_bytes() == b"{}"
    assert names(bundle.path.parent) == sorted(f"tiny/{n}" for n in ["bundle.json", *updated.manifest.files])
    again = updated.update(verification=PASSED, files={"report/report.json": b"{1}"})
    assert again.verified
    assert check_bundle(bundle.path) == again
    assert again.manifest.files["report/report.json"] != updated.manifest.files["report/report.json"]
    assert again.update(files={"golden.safetensors": b""}).verified


def test_update_keeps_what_another_update_wrote(bundle: Bundle) -> None:
    bundle.update(files={"a": b"a"})
    bundle.update(files={"b": b"b"})
    assert {"a", "b"} <= set(check_bundle(bundle.path).manifest.files)


@pytest.mark.parametrize("verified", [True, False])
def test_unverified_and_failed_are_both_not_verified(bundle: Bundle, verified: bool) -> None:
    assert bundle.update(verification=PASSED if verified else FAILED).verified is verified
    edit(bundle, lambda told: told.update(verification=None))
    assert not Bundle.open(bundle.path).verified


@pytest.mark.parametrize(
    ("name", "fault"),
    [("encoder.onnx", "is a graph"), ("../x", "leaves the bundle"), ("link/x", "leaves the bundle through a link")],
)
def test_update_refuses_places_that_are_none(bundle: Bundle, tmp_path: Path, name: str, fault: str) -> None:
    (bundle.path / "link").symlink_to(tmp_path)
    with pytest.raises(BundleError) as caught:
        bundle.update(files={name: b"x"})
    assert str(caught.value) == f"cannot put {name!r} into bundle {bundle.path}: it {fault}"
    assert not (tmp_path / "x").exists()


def test_update_is_refused_while_another_process_writes(bundle: Bundle) -> None:
    with script(HOLD, bundle.path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(OutputError, match="another process is writing it now"):
            bundle.update(verification=FAILED)
        process.kill()
    assert Bundle.open(bundle.path).verified


def test_update_that_runs_out_of_room_leaves_a_bundle_that_opens(bundle: Bundle) -> None:
    bundle.update(files={"report/report.json": b"old"})
    body = """
from vaedeploy.bundle import Bundle
Bundle.open(out).update(files={"report/report.json": bytes(100_000)})
"""
    with script(body, bundle.path, preexec_fn=small_files) as process:
        errors = process.communicate()[1]
    assert errors.splitlines()[-1] == (
        f"vaedeploy.errors.OutputError: cannot write {bundle.path / 'report/report.json'}: File too large. "
        "Raise the limit (ulimit -f, or the file system's own), or choose another place"
    )
    opened = Bundle.open(bundle.path)
    assert sorted(opened.manifest.files) == FILES[1:]
    opened.update(files={"report/report.json": b"new"})
    check_bundle(bundle.path)


def test_update_killed_at_any_moment_leaves_a_bundle_that_opens(bundle: Bundle) -> None:
    bundle.update(files={"report/report.json": b"start"})
    body = """
from vaedeploy.bundle import Bundle
bundle = Bundle.open(out)
print("writing", flush=True)
for i in range(10**9):
    bundle.update(files={"report/report.json": b"%d" % i})
"""
    for _ in range(3):
        with script(body, bundle.path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n"
            time.sleep(0.05)
            process.kill()
        assert Bundle.open(bundle.path).verified
        bundle.update(files={"report/report.json": b"after"})


def test_file_info_is_bytes_and_hash(bundle: Bundle) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert bundle.update(files={"empty": b""}).manifest.files["empty"] == FileInfo(empty, 0)


# The specification

FORMAT_PAGE = ROOT / "docs" / "bundle-format.md"
SPECIFIED = [Manifest, VaeInfo, Origin, LatentSpec, FileInfo, Verification, EngineInfo, EngineIdentity, ShapeSet]


@pytest.mark.parametrize("kind", SPECIFIED)
def test_every_field_is_specified(kind: type[msgspec.Struct]) -> None:
    page = FORMAT_PAGE.read_text(encoding="utf-8")
    for field in msgspec.structs.fields(kind):
        row = next((line for line in page.splitlines() if line.startswith(f"| `{field.name}` |")), "")
        if kind is FileInfo:
            assert f'"{field.name}"' in page
        elif field.default is None or isinstance(field.default, (int, float)):
            assert f"| {json.dumps(field.default)} |" in row
        else:
            assert row
