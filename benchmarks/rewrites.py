"""The exact rewrites on the CPU: the full-size decoder and encoder with seeded weights, forms taking turns.

    python benchmarks/rewrites.py [--sizes 256 512] [--rounds N] [--compile] [--json FILE]

Forms of the graph: as PyTorch exports it, with one rule at a time, and with all that ``vaedeploy export`` applies, each
in ONNX Runtime with the package's own session. Beside them PyTorch eager in float32 and, with ``--compile``,
torch.compile. Times are medians of ratios, turn by turn; errors are against PyTorch in float64; peak memory is that of
a process that runs the graph once. Also how many operations the fold removes, and how long rewriting takes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from main_job import ratio, take_turns

PLAIN = "plain export"
ALL = "all rules"


def write_forms(folder: Path, part: str) -> dict[str, Path]:
    """{name: file}, with weights in one place where they are the same."""
    from vaedeploy.export import trace_graph
    from vaedeploy.graph import load_graph, save_form, save_graph
    from vaedeploy.rewrite import rewrite_graph
    from vaedeploy.rewrite.attention import chunk_attention
    from vaedeploy.rewrite.normalization import split_means
    from vaedeploy.rewrite.upsample import fold_upsampling
    from vaedeploy.source import load_reference

    files = {PLAIN: folder / f"{part}.onnx"}
    save_graph(trace_graph(load_reference("mse840k", "random:0"), part), files[PLAIN])
    rules: dict[str, Callable[[Any], object]] = {"split_means": split_means, "chunk_attention": chunk_attention}
    if part == "decoder":
        for form in ("convolutions", "transposed"):
            rules[f"fold_upsampling, {form}"] = functools.partial(fold_upsampling, form=form)
    for name, rule in rules.items():
        graph = load_graph(files[PLAIN], part)
        rule(graph.model)
        files[name] = folder / f"{part}.{len(files)}.onnx"
        save_form(graph, files[name])
    started = time.perf_counter()
    rewritten = rewrite_graph(load_graph(files[PLAIN], part))
    files[ALL] = folder / f"{part}.all.onnx"
    save_form(rewritten.graph, files[ALL])
    print(f"{part}: all rules took {time.perf_counter() - started:.1f} s to apply and save", flush=True)
    return files


def operations(plain: Path, part: str, size: int) -> dict[str, float]:
    from vaedeploy.graph import load_graph
    from vaedeploy.rewrite.operations import count_operations
    from vaedeploy.rewrite.upsample import fold_upsampling

    graph = load_graph(plain, part).model
    names = {str(d) for d in graph.graph.inputs[0].shape if not isinstance(d, int)}
    scale = 8 if part == "decoder" else 1
    sizes = {name: 1 if name == "batch" else size // scale for name in names}
    before = count_operations(graph, sizes)
    fold_upsampling(graph, "convolutions")
    after = count_operations(graph, sizes)
    return {
        "TFLOP before": before.total / 1e12,
        "TFLOP after": after.total / 1e12,
        "removed, of convolutions": 1 - after.convolutions / before.convolutions,
        "removed, of all": 1 - after.total / before.total,
    }


def peak_mb(graph: Path, array: Path) -> float:
    """Resident MB at most, of a process that runs ``graph`` once."""
    code = (
        "import sys, numpy; from pathlib import Path; from vaedeploy.runtime.onnxruntime_cpu import Session;"
        "s = Session(Path(sys.argv[1])); s.run(s.outputs[:1], {s.inputs[0]: numpy.load(sys.argv[2])})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, graph, array])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{graph} failed")
    return usage.ru_maxrss / 1000


def compare(part: str, size: int, folder: Path, files: dict[str, Path], rounds: int, compiled: bool) -> dict[str, Any]:
    import torch

    from vaedeploy.float64 import call_in_float64
    from vaedeploy.photos import Shape, crop_batch, load_photos
    from vaedeploy.runtime.arrays import to_float
    from vaedeploy.runtime.onnxruntime_cpu import Session
    from vaedeploy.source import load_reference

    reference = load_reference("mse840k", "random:0")
    latent = reference.latent
    image = to_float(crop_batch(load_photos(), Shape("", 1, size, size, False)))
    with torch.no_grad():
        mean = reference.encoder(torch.from_numpy(image))[0]
        given = image if part == "encoder" else ((mean - latent.shift) * latent.scale).numpy()
        raw = torch.from_numpy(image) if part == "encoder" else torch.from_numpy(given) / latent.scale + latent.shift
        half = getattr(reference, part)
        exact = call_in_float64(half, raw)[0].numpy()
    if part == "encoder":
        exact = (exact - latent.shift) * latent.scale
    array = folder / "input.npy"
    np.save(array, given)
    figures: dict[str, Any] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, path in files.items():
        session = Session(path)
        calls[name] = functools.partial(session.run, session.outputs[:1], {session.inputs[0]: given})
        error = np.linalg.norm(calls[name]()[0] - exact) / np.linalg.norm(exact)
        figures[name] = {"relative L2": float(error), "peak MB": peak_mb(path, array)}

    def eager(module: Any) -> Callable[[], Any]:
        def call() -> Any:
            with torch.no_grad():
                return module(raw)

        return call

    calls["PyTorch eager"] = eager(half)
    if compiled:
        calls["torch.compile"] = eager(torch.compile(half, fullgraph=True))
        calls["torch.compile"]()
    times = take_turns(calls, rounds)
    for name, values in times.items():
        row = figures.setdefault(name, {})
        row |= {"s": statistics.median(values), "over plain": ratio(values, times[PLAIN])}
        row["all rules over this"] = ratio(times[ALL], values)
        numbers = "  ".join(f"{key} {value:.3g}" for key, value in row.items())
        print(f"{part} {size}x{size}  {name:32} {numbers}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--parts", nargs="+", default=["decoder", "encoder"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {}
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            files = write_forms(Path(folder), part)
            for size in args.sizes:
                result[f"{part} {size}"] = compare(part, size, Path(folder), files, args.rounds, args.compile)
                if part == "decoder":
                    result[f"operations {size}"] = counted = operations(files[PLAIN], part, size)
                    print(f"{part} {size}x{size}  {counted}", flush=True)
                if args.json:
                    args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
