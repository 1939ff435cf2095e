"""A bundle is one thing: what is read of it later is what was checked when it was opened."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from bit_flips import flip, flipped, some_bits
from bundle_folders import FILES, contents, edit, names, script
from command_line import Ended
from tiny_bundle import FAILED, tiny_bundle

from vaedeploy.bundle import Bundle, check_bundle, edit_bundle
from vaedeploy.bundle.address import fetch_again
from vaedeploy.bundle.encoding import decode_manifest
from vaedeploy.bundle.engines import check_engine
from vaedeploy.bundle.manifest import Manifest
from vaedeploy.bundle.stored import LARGEST, read_manifest
from vaedeploy.errors import BundleError, EngineError, InputError, OutputError
from vaedeploy.runtime import VAE
from vaedeploy.system.files import HOLDS, HeldFolder

held = pytest.mark.skipif(not HOLDS, reason="files cannot be held open here")


def swapped(bundle: Bundle) -> Bundle:
    return tiny_bundle(bundle.path, seed=5, force=True)


# Every bit


def test_every_bit_of_a_manifest_is_sealed(bundle: Bundle) -> None:
    data = (bundle.path / "bundle.json").read_bytes()
    decode_manifest(data, bundle.path)
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BundleError):
            decode_manifest(bytes(altered), bundle.path)


def test_flipped_bits_are_found(built: Bundle, pytestconfig: pytest.Config) -> None:
    """In every file of a bundle with engines and a report: 200 in ``make test-faults``."""
    built.update(files={"report/report.json": b"{}", "previous/notes": b"abc"})
    count = 200 if pytestconfig.getoption("--full") else 10
    for name in names(built.path):
        for bit in some_bits(built.path / name, count, seed=0):
            with flipped(built.path / name, bit):
                with pytest.raises(BundleError, match=rf"{name}|has format \d; this vaedeploy knows format 1"):
                    check_bundle(built.path)
                if name.startswith("engines/"):
                    with pytest.raises(EngineError, match="it is altered: its sha256 is "):
                        check_engine(Bundle.open(built.path), name)
                elif not name.startswith("previous/"):
                    with pytest.raises(BundleError, match=rf"{name}|has format \d; this vaedeploy knows format 1"):
                        Bundle.open(built.path)
    check_bundle(built.path)


def test_manifest_without_a_seal_is_one_of_before(bundle: Bundle, vaedeploy: Callable[..., Ended]) -> None:
    edit(bundle, lambda told: None)
    assert Bundle.open(bundle.path).manifest.seal is None
    told = "bundle.json itself cannot be proved: it is older than seals. Whatever changes the bundle next seals it"
    ended = vaedeploy("inspect", bundle.path, "--check")
    assert (ended.code, told in ended.out) == (0, True)
    bundle.update(verification=FAILED)
    assert told not in vaedeploy("inspect", bundle.path, "--check").out


def test_altered_manifest_is_told(bundle: Bundle) -> None:
    path = bundle.path / "bundle.json"
    path.write_bytes(path.read_bytes().replace(b"Apache-2.0", b"Apache-3.0"))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value).startswith(f"bundle {bundle.path}: bundle.json is altered: its sha256 is ")
    assert str(caught.value).endswith(
        f" where its seal says {bundle.manifest.seal}. Export it again: vaedeploy export NAME --out "
        f"{bundle.path} --force. {fetch_again(bundle.path)}"
    )


# What is no file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has none of these")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "it is not a regular file"),
        ("device", "leaves the bundle through a link"),
        ("link to itself", "Too many levels of symbolic links"),
    ],
)
@pytest.mark.parametrize("name", ["bundle.json", "encoder.onnx"])
def test_what_never_ends_is_not_read(bundle: Bundle, name: str, kind: str, message: str) -> None:
    (bundle.path / name).unlink()
    if kind == "pipe":
        os.mkfifo(bundle.path / name)
    else:
        (bundle.path / name).symlink_to("/dev/zero" if kind == "device" else name)
    for read in (Bundle.open, check_bundle, VAE):
        with pytest.raises(BundleError, match=message):
            read(bundle.path)
    if name == "bundle.json":
        with pytest.raises(OutputError, match="exists and is not a bundle"):
            tiny_bundle(bundle.path, force=True)


def test_manifest_without_bounds_is_not_read(bundle: Bundle) -> None:
    with (bundle.path / "bundle.json").open("rb+") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match=rf"bundle\.json has more than {LARGEST:,} bytes; it is not a manifest"):
        Bundle.open(bundle.path)


# While other processes write


@held
def test_held_bundle_stays_what_it_was(bundle: Bundle) -> None:
    before = contents(bundle.path)
    opened = Bundle.hold(bundle.path)
    swapped(bundle)
    assert contents(bundle.path) != before
    shutil.rmtree(bundle.path)
    assert {name: opened.read(name) for name in FILES[1:]} == {name: before[name] for name in FILES[1:]}
    opened.release()
    with pytest.raises(InputError, match="was released; open it again"):
        opened.read("encoder.onnx")


def test_bundle_that_is_not_held_is_read_as_it_was_or_not_at_all(bundle: Bundle) -> None:
    swapped(bundle)
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data is altered"):
        bundle.read("decoder.onnx.data")


def test_file_that_is_changed_in_place_is_not_read(bundle: Bundle) -> None:
    opened = Bundle.hold(bundle.path)
    flip(bundle.path / "decoder.onnx.data", 100)
    with pytest.raises(BundleError, match=r"is damaged: decoder\.onnx\.data is altered: its sha256 is "):
        opened.read("decoder.onnx.data")
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data is altered"), opened.read_graph("decoder"):
        raise RuntimeError("what came of the altered bytes")
    with opened.read_graph("encoder") as content:
        assert list(content.weights) == ["encoder.onnx.data"]


def test_handles_are_closed(bundle: Bundle) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("only Linux shows what is open")
    before = len(list(folder.iterdir()))
    Bundle.open(bundle.path)
    check_bundle(bundle.path)
    Bundle.hold(bundle.path).release()
    dropped = Bundle.hold(bundle.path)
    assert len(list(folder.iterdir())) == before + 1 + len(FILES[1:])
    del dropped
    assert len(list(folder.iterdir())) == before


def test_edit_of_a_bundle_that_was_replaced_is_refused(bundle: Bundle) -> None:
    new = swapped(bundle)
    with pytest.raises(OutputError, match="another process has replaced it since it was opened"):
        bundle.update(verification=FAILED)
    assert check_bundle(bundle.path) == new


def test_bundle_that_is_replaced_while_it_is_opened(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is open already, and empty by now: the one that took its place is opened."""
    new: list[Bundle] = []

    def late(path: Path, folder: HeldFolder | None = None) -> Manifest:
        if not new:
            new.append(swapped(bundle))
        return read_manifest(path, folder)

    monkeypatch.setattr("vaedeploy.bundle.opening.read_manifest", late)
    assert [Bundle.open(bundle.path)] == new


WRITER = """
import itertools
from vaedeploy.bundle import Bundle
seeds = itertools.cycle([5, 0])
print("writing", flush=True)
while True:
    bundle = tiny_bundle(out, seed=next(seeds), force=True)
    bundle.update(files={"report/report.json": b"%d" % next(seeds)})
"""


@held
def test_readers_under_a_writer_see_one_bundle_or_the_other(bundle: Bundle, tmp_path: Path) -> None:
    """``tests/runtime/test_replaced.py`` compares pictures."""
    other = tiny_bundle(tmp_path / "other", seed=5)
    whole = [{name: data for name, data in contents(b.path).items() if name != "bundle.json"} for b in (bundle, other)]
    wrong: list[object] = []

    def read() -> None:
        for _ in range(5):
            try:
                opened = Bundle.hold(bundle.path)
                found = {name: opened.read(name) for name in FILES[1:]}
                if found not in whole:
                    wrong.append("mixed")
                opened.release()
                check_bundle(bundle.path)
            except Exception as error:
                wrong.append(error)

    with script(WRITER, bundle.path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        running = process.poll() is None
        process.kill()
    assert running
    assert wrong == []


def test_a_manifest_of_another_folder_is_refused(tmp_path: Path) -> None:
    """Whatever is written to such a bundle would change the other one."""
    other, bundle = (tiny_bundle(tmp_path / name) for name in ("other", "bundle"))
    (bundle.path / "bundle.json").unlink()
    (bundle.path / "bundle.json").symlink_to(other.path / "bundle.json")
    before = (other.path / "bundle.json").read_bytes()
    with pytest.raises(BundleError, match=r"bundle\.json leaves the bundle through a link\. Put a copy of the file"):
        Bundle.open(bundle.path)
    with pytest.raises(BundleError, match="leaves the bundle through a link"), edit_bundle(bundle) as edit:
        edit.put(files={"report/a.json": b"{}"})
    assert (other.path / "bundle.json").read_bytes() == before
