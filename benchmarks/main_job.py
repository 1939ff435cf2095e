"""The main job's figures: what an export costs, how long the commands take to start, what the runtime adds.

    python benchmarks/main_job.py [export] [startup] [overhead] [--rounds N] [--json FILE]

Everything is measured from outside, as whole processes, except the runtime's overhead, which is paired: the bare
ONNX Runtime session and ``vae.decode`` take turns on one bundle, and the ratio is taken turn by turn.
Weights are seeded; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

VAE = ("--vae", "mse840k", "--weights", "random:0")
VAEDEPLOY = (sys.executable, "-m", "vaedeploy")


def run(*command: str) -> tuple[float, float]:
    """(wall seconds, peak resident MB) of one process, which must succeed."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{said.decode()}")
    return wall, usage.ru_maxrss / 1000


def export(rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        costs = [run(*VAEDEPLOY, "export", *VAE, "--out", f"{folder}/vae", "--force") for _ in range(rounds)]
    walls, peaks = zip(*costs, strict=True)
    return {
        "export, verified: wall s, median": statistics.median(walls),
        "export, verified: wall s, least": min(walls),
        "export, verified: peak resident MB": max(peaks),
    }


def startup(rounds: int) -> dict[str, float]:
    commands = {
        "python -c pass": (sys.executable, "-c", "pass"),
        "vaedeploy --help": (*VAEDEPLOY, "--help"),
        "import onnxruntime": (sys.executable, "-c", "import onnxruntime"),
        "from vaedeploy.runtime import VAE": (sys.executable, "-c", "from vaedeploy.runtime import VAE"),
    }
    walls: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(max(rounds, 9)):
        for name, command in commands.items():
            walls[name].append(run(*command)[0])
    return {f"{name}: wall s, median": statistics.median(values) for name, values in walls.items()}


def overhead(rounds: int) -> dict[str, float]:
    import vaedeploy.runtime
    from vaedeploy.runtime.onnxruntime_cpu import Session

    with tempfile.TemporaryDirectory() as folder:
        run(*VAEDEPLOY, "export", *VAE, "--out", f"{folder}/vae", "--no-verify")
        with vaedeploy.runtime.VAE(f"{folder}/vae") as vae:
            bare = Session(Path(folder, "vae", "decoder.ort.onnx"))
            latent = np.random.default_rng(0).normal(size=(1, 4, 32, 32)).astype(np.float32)
            calls = {
                "bare": lambda: bare.run(["image_u8", "finite"], {"latent": latent}),
                "vae.decode": lambda: vae.decode(latent),
            }
            times: dict[str, list[float]] = {name: [] for name in calls}
            for turn in range(max(rounds, 15) + 1):
                for name in sorted(calls, reverse=bool(turn % 2)):
                    started = time.perf_counter()
                    calls[name]()
                    times[name].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(times["vae.decode"][1:], times["bare"][1:], strict=True)]
    return {
        "decode 256x256, bare session: s, median": statistics.median(times["bare"][1:]),
        "decode 256x256, vae.decode over bare: ratio, median": statistics.median(ratios),
        "decode 256x256, vae.decode over bare: ratio of least times": min(times["vae.decode"][1:])
        / min(times["bare"][1:]),
    }


PARTS = {"export": export, "startup": startup, "overhead": overhead}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all of them unless given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    for part in args.parts or PARTS:
        for name, value in PARTS[part](args.rounds).items():
            figures[name] = round(value, 4)
            print(f"{name:60} {value:10.3f}", flush=True)
    if args.json:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        args.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
