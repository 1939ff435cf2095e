"""What is left of a bundle when a command is killed before any one of its calls that change the disk.

Run as a program, it kills each command of ``COMMANDS`` at every such point (or at some), and looks at what is left:
is there a whole bundle (``inspect --check``), does the command work afterwards, and does it clear everything away?

    python tests/support/crash_points.py WORK [--some N] [--twice]

It forks a process for each point, and needs gcc: ``crash_points.c`` counts the calls. ``--twice`` replaces bundles by
two renames, as systems do that cannot let two folders change places.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import which

HERE = Path(__file__).parent
COMPILER = which("gcc")


def find_faults(work: Path, some: int | None = None, twice: bool = False) -> list[dict[str, object]]:
    """Run this program: for each command its name, the number of its points, of those tried, and the faults found."""
    library = work / "crash_points.so"
    assert COMPILER is not None
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, HERE / "crash_points.c", "-ldl"], check=True)
    command = [sys.executable, "-B", __file__, str(work)]
    command += [] if some is None else ["--some", str(some)]
    command += ["--twice"] if twice else []
    done = subprocess.run(
        command, env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@dataclass(frozen=True)
class Command:
    """prepare: makes what is there before. run: the command. one_step: whether nothing but the state before or after it
    may be left; a command that is not one may leave a bundle without what it was replacing.
    """

    prepare: Callable[[Path], object]
    run: Callable[[Path], object]
    one_step: bool = True


def commands() -> dict[str, Command]:
    from tiny_bundle import FAILED, tiny_bundle

    from vaedeploy.bundle import PREVIOUS, Bundle, edit_bundle
    from vaedeploy.images.files import write_image
    from vaedeploy.pipeline.codec import encode_files
    from vaedeploy.pipeline.swap import restore_vae
    from vaedeploy.runtime import VAE

    def reported(place: Path) -> Bundle:
        files = {"report/report.json": b"old", "engines/mine/decoder.engine": b"old"}
        return tiny_bundle(place / "tiny").update(files=files)

    def update(place: Path) -> None:
        files = {"report/report.json": b"new", "report/other.json": b"new"}
        Bundle.open(place / "tiny").update(verification=FAILED, files=files)

    def put(place: Path) -> None:
        with edit_bundle(Bundle.open(place / "tiny")) as edit:
            (edit.draft / "engine").write_bytes(b"new")
            edit.put(files={"engines/mine/decoder.engine": edit.draft / "engine"})

    def swapped(place: Path) -> None:
        first, new = tiny_bundle(place / "first"), tiny_bundle(place / "tiny", seed=5)
        with edit_bundle(new) as edit:
            for name in ("bundle.json", *first.manifest.files):
                shutil.copy(first.path / name, edit.draft / name)
            edit.put(files={f"{PREVIOUS}/{name}": edit.draft / name for name in ("bundle.json", *first.manifest.files)})
        shutil.rmtree(first.path)

    def photographed(place: Path) -> None:
        import numpy as np

        tiny_bundle(place / "tiny")
        (place / "photos").mkdir()
        for name in ("a", "b"):
            write_image(place / "photos" / f"{name}.png", np.zeros((8, 8, 3), np.uint8))

    def encode(place: Path) -> None:
        with VAE(place / "tiny") as vae:
            encode_files(vae, place / "photos", place / "latents", sample=False, seed=None, pad=False).check()

    return {
        "export": Command(lambda place: None, lambda place: tiny_bundle(place / "tiny", force=True)),
        "export --force": Command(
            lambda place: tiny_bundle(place / "tiny"), lambda place: tiny_bundle(place / "tiny", seed=5, force=True)
        ),
        "swap --restore": Command(swapped, lambda place: restore_again(place, restore_vae)),
        "verify": Command(reported, update, one_step=False),
        "build": Command(reported, put, one_step=False),
        "encode": Command(photographed, encode, one_step=False),
    }


def restore_again(place: Path, restore: Callable[[Path], object]) -> None:
    """``swap --restore``, which has nothing to do once it is done."""
    from vaedeploy.errors import InputError

    try:
        restore(place / "tiny")
    except InputError as error:
        if "there is nothing to restore" not in str(error):
            raise


def contents(place: Path) -> dict[str, bytes]:
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def in_child(work: Callable[[], object]) -> tuple[int, str]:
    """Do ``work`` in a forked process; returns its exit status and the error that it raised."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        error = ""
        try:
            work()
        except BaseException:
            error = traceback.format_exc()
        os.write(writer, error.encode()[-4000:])
        os._exit(bool(error))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read().decode()
    return os.waitpid(child, 0)[1], told


def look(place: Path, command: Command, before: dict[str, bytes], after: dict[str, bytes]) -> str | None:
    """What is wrong with what a killed command left at ``place``."""
    from vaedeploy.bundle import check_bundle

    if before or (place / "tiny").exists():
        status, error = in_child(lambda: check_bundle(place / "tiny"))
        if status:
            return f"--check after the crash: {error.splitlines()[-1]}"
    if command.one_step:
        now = {name: data for name, data in contents(place).items() if name.startswith("tiny/")}
        if now not in (before, after):
            return "neither the old state nor the new one"
    status, error = in_child(lambda: command.run(place))
    if status:
        return f"the next command: {error.splitlines()[-1]}"
    if contents(place) != after:
        return f"the next command left {sorted(contents(place).keys() ^ after.keys())}"
    check_bundle(place / "tiny")
    return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--some", type=int)
    parser.add_argument("--twice", action="store_true")
    options = parser.parse_args()
    library = ctypes.CDLL(None)
    found = commands()
    if options.twice:
        import vaedeploy.system.atomic

        vaedeploy.system.atomic.exchange = lambda one, other: False  # type: ignore[assignment]
    for name, command in found.items():
        template, place = options.work / "template", options.work / "place"
        shutil.rmtree(template, ignore_errors=True)
        template.mkdir()
        assert in_child(lambda template=template, command=command: command.prepare(template)) == (0, "")

        def renew(place: Path = place, template: Path = template) -> None:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(template, place)

        def killed(point: int, command: Command = command, place: Path = place) -> int:
            def work() -> None:
                library.crash_at(ctypes.c_long(point))
                command.run(place)
                (options.work / "count").write_text(str(library.crash_count()))

            return in_child(work)[0]

        renew()
        before = contents(place)
        assert killed(1 << 40) == 0, name
        points = int((options.work / "count").read_text())
        after = contents(place)
        numbers = range(points)
        chosen = numbers if options.some is None else random.Random(name).sample(numbers, min(points, options.some))
        faults = []
        for point in chosen:
            renew()
            status = killed(point)
            if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
                faults.append(f"point {point}: it was not killed")
            elif fault := look(place, command, before, after):
                faults.append(f"point {point}: {fault}")
        sys.stdout.write(json.dumps({"command": name, "points": points, "tried": len(chosen), "faults": faults}) + "\n")


if __name__ == "__main__":
    main()
