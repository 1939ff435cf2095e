"""What opening a VAE and its first picture cost, each in a process of its own, for versions of vaedeploy in turns.

    python -m vaedeploy export mse840k --weights random:0 --no-verify --out build/mse840k
    python benchmarks/first_call.py build/mse840k            # this version
    python benchmarks/first_call.py build/mse840k . ../old   # this one beside another checkout

It prints medians: seconds to open, seconds of the first and of the second decode, and memory kept and at most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

MEASURED = """
import resource, sys, time, warnings
import numpy as np, onnxruntime
from vaedeploy.runtime import VAE
warnings.simplefilter("ignore")
side = int(sys.argv[2])
def seconds(work):
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made
opening, vae = seconds(lambda: VAE(sys.argv[1], "onnxruntime-cpu"))
spec = vae.latent
latent = np.zeros((1, spec.channels, side // spec.factor, side // spec.factor), np.float32)
first, _ = seconds(lambda: vae.decode(latent))
kept = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
second, _ = seconds(lambda: vae.decode(latent))
print(opening, first, second, kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("trees", nargs="*", default=["."])
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rows: dict[str, list[list[float]]] = {tree: [] for tree in options.trees}
    for _ in range(options.rounds):
        for tree in options.trees:
            command = [sys.executable, "-c", MEASURED, str(options.bundle.resolve()), str(options.side)]
            environment = {**os.environ, "PYTHONPATH": str(Path(tree).resolve())}
            done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=True)
            rows[tree].append([float(word) for word in done.stdout.split()])
    for tree, measured in rows.items():
        opening, first, second, kept, most = (statistics.median(column) for column in zip(*measured, strict=True))
        print(
            f"{tree}: open {opening:.2f} s, first {first:.2f} s, second {second:.2f} s, "
            f"memory kept {kept:.0f} MB, at most {most:.0f} MB"
        )


if __name__ == "__main__":
    main()
