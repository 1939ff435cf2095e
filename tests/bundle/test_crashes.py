"""A command that is killed at any moment leaves a whole bundle, and does not stand in the way of the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_folders import FILES, contents, edit, names, script
from crash_points import COMPILER, find_faults
from tiny_bundle import FAILED

from vaedeploy.bundle import Bundle, check_bundle, edit_bundle
from vaedeploy.system.atomic import clear_drafts, link_or_copy, move_file, write_file
from vaedeploy.system.lock import hold_file
from vaedeploy.system.mounts import is_mount

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the library that kills is for Linux")


@pytest.mark.slow
@LINUX
@pytest.mark.skipif(COMPILER is None, reason="needs gcc")
@pytest.mark.parametrize("twice", [False, True], ids=["one step", "two renames"])
def test_killed_before_a_call_that_changes_the_disk(tmp_path: Path, twice: bool, pytestconfig: pytest.Config) -> None:
    """Some points here, all of them in ``make test-faults``."""
    found = find_faults(tmp_path, None if pytestconfig.getoption("--full") else 3, twice)
    assert [row["command"] for row in found] == [
        "export",
        "export --force",
        "swap --restore",
        "verify",
        "build",
        "encode",
    ]
    assert all(int(str(row["points"])) > 10 for row in found)
    assert [fault for row in found for fault in row["faults"]] == []  # type: ignore[attr-defined]


def test_drafts_of_killed_writers_do_not_damage_a_bundle(bundle: Bundle) -> None:
    """As vaedeploy left them before files were written beside the bundle."""
    (bundle.path / ".bundle.json.0123456789ab.tmp").write_bytes(b"half")
    check_bundle(bundle.path)
    bundle.update(verification=FAILED)
    assert names(bundle.path.parent) == [f"tiny/{name}" for name in FILES]


def test_files_that_a_killed_writer_did_not_finish(bundle: Bundle) -> None:
    (bundle.path / "report").mkdir()
    (bundle.path / "report" / "report.json").write_bytes(b"half")
    edit(bundle, lambda told: told.update(unfinished=["report/report.json", "encoder.onnx"]))
    check_bundle(bundle.path)
    with edit_bundle(Bundle.open(bundle.path)) as begun:
        assert begun.bundle.manifest.unfinished == ()
    assert names(bundle.path) == FILES
    assert check_bundle(bundle.path).manifest.seal is not None


# Temporary files


def test_temporary_files_are_cleared_unless_somebody_writes_them(tmp_path: Path) -> None:
    abandoned, busy = tmp_path / ".a.png.0123456789ab.tmp", tmp_path / ".b.png.0123456789ab.tmp"
    others = [tmp_path / name for name in (".a.png.tmp", "a.0123456789ab.tmp", ".a.0123456789ab.old")]
    for path in (abandoned, *others):
        path.write_bytes(b"half")
    (tmp_path / ".folder.0123456789ab.tmp").mkdir()
    with hold_file(busy):
        clear_drafts(tmp_path, "b.png")
        assert abandoned.exists()
        clear_drafts(tmp_path)
        assert not abandoned.exists()
        assert busy.exists()
    clear_drafts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / ".folder.0123456789ab.tmp"])


def test_a_draft_that_was_taken_for_an_abandoned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and its locking, another process may remove it: then it is written anew."""
    import vaedeploy.system.lock

    lock, taken = vaedeploy.system.lock.lock_descriptor, []

    def steal(handle: int, *, blocking: bool) -> bool:
        locked = lock(handle, blocking=blocking)
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        return locked

    monkeypatch.setattr(vaedeploy.system.lock, "lock_descriptor", steal)
    write_file(tmp_path / "a", b"whole")
    assert len(taken) == 1
    assert contents(tmp_path) == {"a": b"whole"}


# Signals

STOPPED = """
from vaedeploy.cli import terminal
import click
@click.command()
def command():
    tiny = tiny_bundle
    with create_bundle(out, force=True) as draft:
        {work}
terminal_code = terminal.run(command, [])
sys.exit(terminal_code)
"""

LOST = """
        class Swallows:
            def __del__(self):
                signal.raise_signal(signal.SIGINT)
        import signal
        from tiny_bundle import _decoder, _encoder, _save
        spec = LatentSpec(channels=2, factor=4, scale=1.0)
        _save(_encoder(spec, "float", 5), draft.path / "encoder.onnx")
        _save(_decoder(spec, 5), draft.path / "decoder.onnx")
        Swallows()  # Python ignores what a destructor raises
        draft.finish(tiny_manifest(spec))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")
@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGINT, "Interrupted"), (signal.SIGTERM, "Stopped by SIGTERM"), (signal.SIGHUP, "Stopped by SIGHUP")],
)
def test_a_signal_leaves_what_was_there(bundle: Bundle, number: signal.Signals, told: str) -> None:
    before = contents(bundle.path.parent)
    wait = "print('writing', flush=True); sys.stdin.readline()"
    with script(STOPPED.format(work=wait), bundle.path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        errors = process.communicate()[1]
    assert process.returncode == 128 + number
    assert errors.splitlines()[-1] == f"{told}; nothing half-written was left behind"
    assert contents(bundle.path.parent) == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")
def test_ctrl_c_that_python_lost_still_stops_a_replacement(bundle: Bundle) -> None:
    before = contents(bundle.path.parent)
    with script(STOPPED.format(work=LOST.strip()), bundle.path) as process:
        errors = process.communicate()[1]
    assert "Exception ignored in" in errors
    assert errors.splitlines()[-1] == "Interrupted; nothing half-written was left behind"
    assert process.returncode == 130
    assert contents(bundle.path.parent) == before


# Two writers, and folders of odd kinds


def test_two_writers_do_not_call_each_other_damaged(bundle: Bundle) -> None:
    body = """
from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.errors import OutputError
for i in range(30):
    try:
        Bundle.open(out).update(files={"report/report.json": b"%d" % i, "report/other.json": b"%d" % -i})
    except OutputError as error:
        assert "another process is writing it now" in str(error), error
    check_bundle(out)
"""
    processes = [script(body, bundle.path) for _ in range(2)]
    for process in processes:
        with process:
            assert process.communicate()[1] == ""
    check_bundle(bundle.path)


def test_a_file_is_moved_onto_a_hard_link_of_itself(tmp_path: Path) -> None:
    """Renaming does nothing then, and the draft would stay."""
    (tmp_path / "place").write_bytes(b"x")
    for _ in range(2):
        link_or_copy(tmp_path / "place", tmp_path / "draft")
        move_file(tmp_path / "draft", tmp_path / "place")
        assert contents(tmp_path) == {"place": b"x"}


def test_bundle_with_hard_links_is_edited_and_its_twin_stays(bundle: Bundle, tmp_path: Path) -> None:
    bundle.update(files={"engines/a": b"x", "engines/b": b"y"})
    twin = tmp_path / "twin"
    for name in names(bundle.path):
        (twin / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(bundle.path / name, twin / name)
    before = contents(twin)
    with edit_bundle(Bundle.open(bundle.path)) as begun:
        for name in ("engines/b", "engines/a", "engines/c"):
            link_or_copy(bundle.path / "engines/a", begun.draft / "engine")
            begun.put(files={name: begun.draft / "engine"})
    check_bundle(bundle.path)
    assert contents(twin) == before
    check_bundle(twin)


MOUNTS = ["unshare", "--map-root-user", "--mount"]


@LINUX
@pytest.mark.parametrize("kind", ["--bind", "-t tmpfs"])
def test_mount_point_is_told_before_the_work(bundle: Bundle, kind: str) -> None:
    if subprocess.run([*MOUNTS, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    body = """
from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.pipeline.swap import restore_vae
from vaedeploy.errors import OutputError
def refused(replace):
    try:
        replace()
    except OutputError as error:
        print(error)
refused(lambda: tiny_bundle(out, seed=5, force=True))
if "--bind" in sys.argv:
    refused(lambda: restore_vae(out))
    Bundle.open(out).update(files={"report/report.json": b"1"})
    Bundle.open(out).update(files={"report/report.json": b"2"})
    check_bundle(out)
else:
    tiny_bundle(out / "vae")
print(sorted(p.name for p in out.parent.iterdir()))
"""
    from bundle_folders import SCRIPT

    (bundle.path.parent / "my volume").mkdir()
    volume = bundle.path if kind == "--bind" else bundle.path.parent / "my volume"
    mount = f'mount {kind} "{volume if kind == "--bind" else "none"}" "{volume}" && exec "$@"'
    run = [sys.executable, "-B", "-c", SCRIPT + body, str(volume), kind]
    done = subprocess.run([*MOUNTS, "sh", "-c", mount, "sh", *run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *told, left = done.stdout.splitlines()
    assert len(told) == (2 if kind == "--bind" else 1)
    assert set(told) == {
        f"cannot replace {volume}: it is a mount point, which no system can rename. Put the bundle into a folder in "
        f"it, such as {volume / 'vae'}, or mount the folder above it"
    }
    assert left == "['my volume', 'tiny']"


def test_what_is_no_mount_point(tmp_path: Path) -> None:
    assert is_mount(Path("/"))
    assert not is_mount(tmp_path)
    assert not is_mount(tmp_path / "nothing")
