"""Measure export, start-up and decoding on the full-size architecture with seeded weights. Nothing is downloaded.

    python benchmarks/main_job.py [export] [startup] [overhead] [demo] [--rounds N] [--json FILE]

export: the time (s) and the peak memory (MB) of an export with its verification, as a whole process.
startup: the time (s) of commands and imports, as whole processes.
overhead: the time of ``vae.decode`` over that of the bare ONNX Runtime session; they take turns, and the ratio is taken
    turn by turn.
demo: the time (s) to decode 512x512 with the VAE that the package carries.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

FULL_SIZE = ("mse840k", "--weights", "random:0")
VAEDEPLOY = (sys.executable, "-m", "vaedeploy")


def run(*command: str) -> tuple[float, float]:
    """Run a process, which must succeed, and return (wall seconds, peak resident MB)."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{said.decode()}")
    return wall, usage.ru_maxrss / 1000


def take_turns(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """The seconds of each call in each turn. The order alternates, and one turn before the others is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name in sorted(calls, reverse=bool(turn % 2)):
            started = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in times.items()}


def ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def export(folder: Path, rounds: int) -> dict[str, float]:
    costs = [run(*VAEDEPLOY, "export", *FULL_SIZE, "--out", str(folder / "vae"), "--force") for _ in range(rounds)]
    walls, peaks = zip(*costs, strict=True)
    return {
        "export, verified: wall s, median": statistics.median(walls),
        "export, verified: wall s, least": min(walls),
        "export, verified: peak resident MB": max(peaks),
    }


def startup(folder: Path, rounds: int) -> dict[str, float]:
    commands = {
        "python -c pass": (sys.executable, "-c", "pass"),
        "vaedeploy --help": (*VAEDEPLOY, "--help"),
        "import onnxruntime": (sys.executable, "-c", "import onnxruntime"),
        "from vaedeploy.runtime import VAE": (sys.executable, "-c", "from vaedeploy.runtime import VAE"),
    }
    calls = {name: functools.partial(run, *command) for name, command in commands.items()}
    times = take_turns(calls, max(rounds, 9))
    return {f"{name}: wall s, median": statistics.median(values) for name, values in times.items()}


def full_size(folder: Path) -> Path:
    """A verified full-size bundle: the one that ``export`` made, or a new one."""
    if not (folder / "vae").exists():
        export(folder, 1)
    return folder / "vae"


def overhead(folder: Path, rounds: int) -> dict[str, float]:
    from vaedeploy.runtime import VAE
    from vaedeploy.runtime.onnxruntime_cpu import Session

    bundle = full_size(folder)
    latent = np.random.default_rng(0).normal(size=(1, 4, 32, 32)).astype(np.float32)
    with VAE(bundle) as vae:
        bare = Session(bundle / "decoder.ort.onnx")
        calls = {
            "bare": lambda: bare.run(["image_u8", "finite"], {"latent": latent}),
            "vae.decode": lambda: vae.decode(latent),
        }
        times = take_turns(calls, max(rounds, 15))
    return {
        "decode 256x256, bare session: s, median": statistics.median(times["bare"]),
        "decode 256x256, vae.decode over bare: ratio, median": ratio(times["vae.decode"], times["bare"]),
        "decode 256x256, vae.decode over bare: ratio of least": min(times["vae.decode"]) / min(times["bare"]),
    }


def demo(folder: Path, rounds: int) -> dict[str, float]:
    from vaedeploy.runtime import VAE

    run(*VAEDEPLOY, "export", "demo", "--out", str(folder / "demo"))
    latent = np.random.default_rng(0).normal(size=(1, 16, 64, 64)).astype(np.float32)
    with VAE(folder / "demo") as vae:
        times = take_turns({"decode": lambda: vae.decode(latent)}, max(rounds, 9))
    return {"demo, decode 512x512: s, median": statistics.median(times["decode"])}


PARTS = {"export": export, "startup": startup, "overhead": overhead, "demo": demo}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="the parts to measure [default: all]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts or PARTS:
            for name, value in PARTS[part](Path(folder), args.rounds).items():
                figures[name] = round(value, 4)
                print(f"{name:62} {value:10.3f}", flush=True)
    if args.json:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        args.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
