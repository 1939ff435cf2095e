"""Measure what encoding and decoding take at once and by rows: memory, processor time, and error.

    python benchmarks/any_size.py BUNDLE --part decoder --size 2048 --limits none 5.3e9 3e9 [--json FILE]

Each limit (bytes; none: no limit) is a process of its own that opens the bundle on the CPU with two threads, loads the
graph with a small call, and then makes one call on seeded noise. ``taken`` is the peak of resident memory during that
call, less the resident memory before it and less the result; ``process`` is that peak whole. Errors are those against
the first limit's result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import vaedeploy as vd


def resident(which: str) -> int:
    """Bytes: VmRSS, or VmHWM for the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


def measure(
    bundle: str, part: str, size: int, limit: int | None, workspace: str | None, result: Path
) -> dict[str, Any]:
    """One call in this process. result: where its output goes."""
    warnings.simplefilter("ignore")
    # A limit that nothing reaches, rather than a share of what is free.
    vae = vd.VAE(bundle, "onnxruntime-cpu", max_memory=limit or 1 << 50, threads=2, workspace=workspace)
    random, latent = np.random.default_rng(0), vae.latent

    def call(side: int) -> Any:
        if part == "decoder":
            shape = 1, latent.channels, side // latent.factor, side // latent.factor
            given = random.standard_normal(shape).astype(np.float32)
            return lambda: vae.decode(given, output="float")
        given = random.uniform(-1, 1, (1, latent.image_channels, side, side)).astype(np.float32)
        return lambda: vae.encode(given)

    call(2 * latent.factor)()
    plan, run = vae.plan(size, size)[part], call(size)  # type: ignore[index]
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before, processor, began = resident("VmRSS"), time.process_time(), time.monotonic()
    output = run()
    seconds, peak = time.monotonic() - began, resident("VmHWM")
    np.save(result, output)
    return {
        "way": plan.way,
        "plan": plan.bytes,
        "disk": plan.disk,
        "again": round(plan.again, 3),
        "taken": peak - before - output.nbytes,
        "process": peak,
        "processor_seconds": round(time.process_time() - processor, 1),
        "seconds": round(seconds, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--part", choices=("encoder", "decoder"), default="decoder")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--limits", nargs="+", default=["none"])
    parser.add_argument("--workspace")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # of the one limit, in a process of its own
    args = parser.parse_args()
    if args.result:
        (limit,) = args.limits
        number = None if limit == "none" else int(float(limit))
        print(json.dumps(measure(args.bundle, args.part, args.size, number, args.workspace, args.result)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.npy" for index in range(len(args.limits))]
        for limit, file in zip(args.limits, files, strict=True):
            command = [sys.executable, __file__, args.bundle, "--part", args.part, "--size", str(args.size)]
            command += ["--limits", limit, "--result", str(file)]
            command += ["--workspace", args.workspace] if args.workspace else []
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row = {"part": args.part, "size": args.size, "limit": limit, **json.loads(told.splitlines()[-1])}
            first, own = np.load(files[0], mmap_mode="r"), np.load(file, mmap_mode="r")
            difference = np.asarray(own, np.float64) - first
            row["rel_l2"] = float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(first, np.float64)))
            rows.append(row)
            print(row, flush=True)
    if args.json:
        known = json.loads(args.json.read_text()) if args.json.exists() else []
        args.json.write_text(json.dumps([*known, *rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
