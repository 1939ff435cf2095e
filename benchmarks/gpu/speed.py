"""Time all contestants in turns, case by case, and whole calls with ``vaedeploy bench``."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.gpu.engines import build_engines_until, bundle_at, engines
from benchmarks.gpu.measuring import DEVICE, errors, peak_gb, row_of, take_turns
from benchmarks.gpu.onnxruntime import sessions, write_forms
from benchmarks.gpu.pytorch import COMPILE_SECONDS, COMPILED, TOLD, compiled_elsewhere, exact, inputs, modules
from vaedeploy.bundle import Bundle
from vaedeploy.cli.tables.results import bench_rows
from vaedeploy.pipeline.bench import bench_bundle
from vaedeploy.runtime.backends import BACKENDS, ENGINES, problem_of
from vaedeploy.values.reference import Reference

TFLOP = {"encoder": {512: 1.117, 768: 2.609, 1024: 4.879}, "decoder": {512: 2.515, 768: 5.754, 1024: 10.470}}
"""10^12 operations of the SD architecture for one image, by part and side in pixels: twice the multiply-adds."""


CASES = tuple((part, size, n) for n in (1, 4) for size in (512, 1024, 768) for part in ("decoder", "encoder"))
"""(part, side in pixels, batch). The most informative cases come first, since time may run out."""


def tell(row: dict[str, Any], ceilings: dict[str, float] | None) -> None:
    """Print a line of the table, and add the share of the floor to the row."""
    start = f"{row['part']} {row['size']} x{row['batch']} {row['name']:48s}"
    if "ms" not in row:
        print(f"{start} FAILED {row['failed']}", flush=True)
        return
    if ceilings and row["size"] in TFLOP[row["part"]]:
        rate = TFLOP[row["part"]][row["size"]] * row["batch"] / row["ms"] * 1e3
        row["share of the floor"] = rate / ceilings["fp16 matrix product, TFLOP/s"]
    share = f"{row['share of the floor']:5.0%} of the floor" if "share of the floor" in row else ""
    print(
        f"{start} {row['ms']:8.2f} ms {row['over eager fp16']:6.3f}  {share}  rel L2 {row['rel_l2']:.1e}  "
        f"not finite {row['not finite']:.2f}",
        flush=True,
    )


def contest(
    reference: Reference, forms: dict[str, Path], bundle: Path | None, case: tuple[str, int, int], rounds: int
) -> list[dict[str, Any]]:
    """Time the contestants of one case, and return a row for each."""
    part, size, batch = case
    x = inputs(reference, size, batch)[part]
    expected = exact(reference, part, x)
    calls = modules(reference, part, x)
    memory = {name: peak_gb(call) for name, call in calls.items()}
    shape, rows = tuple(expected.shape), []
    built = engines(bundle, part, x, shape, memory) if bundle else ({}, {})
    for found, lost in (sessions(forms, x, shape, memory), built):
        calls |= found
        rows += [{"part": part, "size": size, "batch": batch, "name": n, "failed": why} for n, why in lost.items()]
    far = {name: errors(call(), expected) for name, call in calls.items()}
    times = take_turns(calls, rounds)
    return rows + [row_of(*case, name, times, far[name]) | {"GB": memory[name]} for name in times]


def speed(
    reference: Reference,
    folder: Path,
    cases: Any,
    rounds: int,
    deadline: float,
    arguments: list[str],
    ceilings: Any,
    keep: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Time all cases, and return a row for each contestant of each case.

    keep: is called with all rows after each row, so that they are saved if the run is cut short.
    """
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        tell(row, ceilings)
        keep(rows)

    forms = write_forms(reference, folder)
    # Builds start only in the first third of the time, so that time is left to run the engines against the others.
    bundle, failed = build_engines_until(time.monotonic() + (deadline - time.monotonic()) / 3, reference, folder)
    for name, why in failed.items():
        add({"part": "both", "size": 0, "batch": 0, "name": name, "failed": why})
    # Of what is left, half goes to torch.compile at most.
    half = (time.monotonic() + deadline) / 2
    enough = max(half, deadline - len(COMPILED) * COMPILE_SECONDS)
    for part, size, batch in cases:
        if time.monotonic() > enough:
            add({"part": part, "size": size, "batch": batch, "name": "everything", "failed": "no time was left"})
            continue
        try:
            for row in contest(reference, forms[part], bundle, (part, size, batch), rounds):
                add(row)
        except torch.OutOfMemoryError as error:  # a PyTorch contestant does not fit a smaller GPU
            add({"part": part, "size": size, "batch": batch, "name": "everything", "failed": str(error)[:400]})
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    for case in COMPILED if DEVICE == "cuda" else cases:
        left = deadline - time.monotonic()
        if left < 30:
            add(dict(zip(("part", "size", "batch"), case, strict=True), name=TOLD, failed="no time was left"))
        else:
            for row in compiled_elsewhere(case, min(left, COMPILE_SECONDS), arguments):
                add(row)
    return rows


def whole_calls(reference: Reference, folder: Path, rounds: int, deadline: float) -> Any:
    """Run ``vaedeploy bench`` on the bundle with the engines of ``speed``.

    Beside a GPU, the CPU is left out: it takes minutes.
    """
    if time.monotonic() > deadline:
        return "no time was left"
    bundle = bundle_at(reference, folder)
    sizes = [(512, 512), (1024, 1024)] if DEVICE == "cuda" else [(64, 64)]
    possible = BACKENDS[:-1] if DEVICE == "cuda" else BACKENDS[-1:]
    built = {info.identity.backend for info in Bundle.open(bundle).manifest.engines.values()}
    backends = [name for name in possible if problem_of(name) is None and (name in built or name not in ENGINES)]
    if not backends:
        return "no backend answers: " + ". ".join(str(problem_of(name)) for name in possible)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = bench_bundle(bundle, backends=backends, sizes=sizes, batches=(1, 4), rounds=rounds)
    for row in bench_rows(found):
        print("  ".join(row), flush=True)
    return msgspec.to_builtins(found)
