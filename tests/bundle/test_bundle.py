"""Bundles: opened as they were made, changed whole or not at all, and refused when they are not whole."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bundle_folders import FILES, HOLD, contents, edit, names, script, small_files
from tiny_bundle import FAILED, PASSED, tiny_bundle

from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.errors import BundleError, OutputError
from vaedeploy.pipeline.verify import verify_bundle
from vaedeploy.runtime import VAE


def again(bundle: Bundle) -> str:
    return (
        f"Export it again: vaedeploy export sd15 --weights random:0 --out {bundle.path} --force. "
        "If it came from elsewhere, copy it from there again; where that is the hub, run: "
        f"vaedeploy pull OWNER/NAME --out {bundle.path} --force"
    )


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
        f"bundle {bundle.path} is undamaged, but has files that its manifest does not name: engines/notes.txt "
        "is not in bundle.json. Move them elsewhere"
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


MAKE = "Make a bundle with: vaedeploy export NAME --out"


def test_places_without_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "mine.safetensors").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "odd" / "bundle.json").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    cases = {
        "none": "there is no bundle at {0}. " + MAKE + " {0}",
        "none.ckpt": "there is no bundle at {0}. Make a bundle with: vaedeploy export {0} --out {1}",
        "file": "{0} is a file; a bundle is a folder with a bundle.json in it. Give the folder",
        "mine.safetensors": "{0} is a file; a bundle is a folder with a bundle.json in it. "
        "Make a bundle with: vaedeploy export {0} --out {1}",
        "folder": "{0} is not a bundle: it has no bundle.json. " + MAKE + " {0}",
        "photos": "{0} is not a bundle: it has no bundle.json. Give a bundle's folder, or make one in another place: "
        "vaedeploy export NAME --out PLACE",
        "odd": "bundle {0}: bundle.json cannot be read: Is a directory",
    }
    for name, message in cases.items():
        with pytest.raises(BundleError) as caught:
            Bundle.open(tmp_path / name)
        assert str(caught.value) == message.format(tmp_path / name, (tmp_path / name).with_suffix(""))


@pytest.mark.parametrize(
    ("given", "near"), [("tinyy", "; the nearest is tiny"), ("TINY", "; the nearest is tiny"), ("empyt", "")]
)
def test_of_a_missing_bundle_the_nearest_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, given: str, near: str
) -> None:
    monkeypatch.chdir(bundle.path.parent)
    Path("empty").mkdir()
    with pytest.raises(BundleError) as caught:
        Bundle.open(given)
    assert str(caught.value) == f"there is no bundle at {given}{near}. {MAKE} {given}"


@pytest.mark.parametrize("open_it", [Bundle.open, VAE, verify_bundle])
def test_a_preset_that_nobody_exported_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_it: Callable[[str], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError) as caught:
        open_it("mse840k")
    assert (
        str(caught.value)
        == "there is no bundle at mse840k. mse840k is a preset; export it first: vaedeploy export mse840k"
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


def test_update_that_runs_out_of_room_leaves_the_bundle_as_it_was(bundle: Bundle) -> None:
    bundle.update(files={"report/report.json": b"old"})
    before = contents(bundle.path.parent)
    body = """
from vaedeploy.bundle import Bundle
Bundle.open(out).update(files={"report/report.json": bytes(100_000)})
"""
    with script(body, bundle.path, preexec_fn=small_files) as process:
        errors = process.communicate()[1]
    assert errors.splitlines()[-1] == (
        f"vaedeploy.errors.OutputError: cannot write bundle {bundle.path}: File too large. "
        "Raise the limit (ulimit -f, or the file system's own), or choose another place"
    )
    assert contents(bundle.path.parent) == before
    bundle.update(files={"report/report.json": b"new"})
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
