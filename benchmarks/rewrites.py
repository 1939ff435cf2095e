"""Time the exact rewrites on the CPU: forms of the full-size decoder and encoder, with seeded weights, take turns.

    python benchmarks/rewrites.py [--sizes 256 512] [--rounds 5 3] [--compile] [--optimum FILE] [--json FILE]

The forms of the graph are: as PyTorch exports it, with one rule at a time, and with all rules that ``vaedeploy export``
applies. Each runs in ONNX Runtime with the package's session. PyTorch eager in float32 takes turns with them; with
``--compile`` so does torch.compile, with static shapes; with ``--optimum`` so does the decoder as optimum-onnx exports
it, in the same session (export_optimum.py makes the file). Times are medians of ratios, turn by turn, with the lowest
and the highest ratio; errors are relative L2 against PyTorch in float64; peak memory is that of a process that runs the
form once. The benchmark also prints how many operations the fold removes, and how long rewriting takes. ``--rounds``
takes one number for each size.
"""

from __future__ import annotations

import argparse
import functools
import json
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
    """Write the forms and return {name: file}. Forms with the same weights share one weights file."""
    from vaedeploy.graph.graph import load_graph, save_form, save_graph
    from vaedeploy.graph.trace import trace_graph
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
    from vaedeploy.graph.graph import load_graph
    from vaedeploy.graph.operations import count_operations
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


ORT_ONCE = """
import sys, numpy
from pathlib import Path
from vaedeploy.runtime.onnxruntime_cpu import Session
session = Session(Path(sys.argv[1]))
session.run(session.outputs[:1], {session.inputs[0]: numpy.load(sys.argv[2])})
"""
TORCH_ONCE = """
import sys, numpy, torch
module = torch.load(sys.argv[1], weights_only=False)
if sys.argv[3] == "compile":
    module = torch.compile(module, fullgraph=True, dynamic=False)
with torch.no_grad():
    module(torch.from_numpy(numpy.load(sys.argv[2])))
"""
# wait4's figure would include the memory of the process that started this one.
TELL_PEAK = "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"


def peak_mb(code: str, *arguments: Path | str) -> float:
    """Peak resident MB of a process that runs ``code``."""
    ended = subprocess.run(
        [sys.executable, "-c", code + TELL_PEAK, *arguments], stdout=subprocess.PIPE, check=True, text=True
    )
    return int(ended.stdout) * 1.024 / 1000


def compare(
    part: str, size: int, folder: Path, files: dict[str, Path], rounds: int, compiled: bool, optimum: Path | None
) -> dict[str, Any]:
    import torch

    from vaedeploy.images.photos import crop_batch, load_photos
    from vaedeploy.images.pixels import to_float
    from vaedeploy.numerics.float64 import call_in_float64
    from vaedeploy.runtime.onnxruntime_cpu import Session
    from vaedeploy.source import load_reference
    from vaedeploy.verify.shapes import Shape

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
    figures: dict[str, Any] = {}
    calls: dict[str, Callable[[], Any]] = {}

    def add_session(name: str, path: Path, array: Any) -> None:
        session = Session(path)
        calls[name] = functools.partial(session.run, session.outputs[:1], {session.inputs[0]: array})
        error = np.linalg.norm(calls[name]()[0] - exact) / np.linalg.norm(exact)
        np.save(folder / "input.npy", array)
        figures[name] = {"relative L2": float(error), "peak MB": peak_mb(ORT_ONCE, path, folder / "input.npy")}

    def add_module(name: str, module: Any, how: str) -> None:
        def call() -> Any:
            with torch.no_grad():
                return module(raw)

        calls[name] = call
        made = call() if part == "decoder" else (call()[0] - latent.shift) * latent.scale
        error = np.linalg.norm(made.numpy() - exact) / np.linalg.norm(exact)
        np.save(folder / "input.npy", raw.numpy())
        peak = peak_mb(TORCH_ONCE, folder / "module.pt", folder / "input.npy", how)
        figures[name] = {"relative L2": float(error), "peak MB": peak}

    for name, path in files.items():
        add_session(name, path, given)
    if optimum is not None and part == "decoder":  # its input is the raw latent, without scale and shift
        add_session("optimum-onnx", optimum, raw.numpy())
    torch.save(half, folder / "module.pt")
    add_module("PyTorch eager", half, "eager")
    if compiled:
        add_module("torch.compile", torch.compile(half, fullgraph=True, dynamic=False), "compile")
    times = take_turns(calls, rounds)
    for name, values in times.items():
        ratios = [a / b for a, b in zip(times[ALL], values, strict=True)]
        row = figures[name]
        row |= {"s": statistics.median(values), "over plain": ratio(values, times[PLAIN])}
        row |= {"all rules over this": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in row.items())
        print(f"{part} {size}x{size}  {name:32} {numbers}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--parts", nargs="+", default=["decoder", "encoder"])
    parser.add_argument("--rounds", type=int, nargs="+", default=[5, 3])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--optimum", type=Path, help="optimum-onnx's decoder, from export_optimum.py")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {}
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            files = write_forms(Path(folder), part)
            for size, rounds in zip(args.sizes, args.rounds, strict=True):
                result[f"{part} {size}"] = compare(part, size, Path(folder), files, rounds, args.compile, args.optimum)
                if part == "decoder":
                    result[f"operations {size}"] = counted = operations(files[PLAIN], part, size)
                    print(f"{part} {size}x{size}  {counted}", flush=True)
                if args.json:
                    args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
