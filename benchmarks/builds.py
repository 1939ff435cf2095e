"""Time TensorRT-RTX builds of the full-size encoder and decoder with seeded weights. No GPU is needed.

    python benchmarks/builds.py [--capabilities 8.9 ...] [--precisions fp16 ...] [--rounds N] [--json FILE]

For each compute capability it prints the seconds of a build in its own process (median), the engine's size in bytes,
and the memory in bytes that the builder reports at each size of the shipped profiles, with the estimate of ``vaedeploy
build`` over it. The decoder is built as the rewrites leave it, with its upsampling unfolded, and in the other fold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaedeploy.engines.build import Engine, backend_version, build_engine
from vaedeploy.engines.estimate import estimate_memory
from vaedeploy.engines.profile import CAPABILITIES, get_profile
from vaedeploy.engines.protocol import BuildRequest
from vaedeploy.graph.graph import Graph, Inputs, load_graph, save_form, save_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.rewrite.padding import fold_padding
from vaedeploy.rewrite.precision import lower_precision
from vaedeploy.rewrite.upsample import fold_upsampling
from vaedeploy.source import load_reference
from vaedeploy.values.kinds import PARTS
from vaedeploy.values.shapes import ShapeSet

SHAPES = get_profile("rtx4090").shapes


def write_graphs(folder: Path, precision: str) -> dict[str, Path]:
    """Write both halves, lowered to ``precision``, and return {variant: file}."""
    reference = load_reference("mse840k", "random:0")
    files = {}
    for part in PARTS:
        plain = folder / f"{part}.onnx"
        save_graph(trace_graph(reference, part), plain)
        forms = {"transposed fold": "transposed", "unfolded": None, "four convolutions": "convolutions"}
        for name, form in forms.items() if part == "decoder" else [("", None)]:
            graph = load_graph(plain, part)
            fold_padding(graph.model)
            if form:
                fold_upsampling(graph.model, form)
            if precision != "fp32":
                lower_precision(graph.model, precision)
            variant = f"{part} {precision} {name}".strip()
            files[variant] = folder / f"{variant.replace(' ', '-')}.onnx"
            save_form(graph, files[variant], shared=False)
    return files


def build(
    graph: Graph, path: Path, shapes: Mapping[str, ShapeSet], capability: str, folder: Path, factor: int = 8
) -> tuple[Engine, float]:
    """An engine of ``graph``, which is in the file ``path``, and the seconds of its build in a process of its own."""
    inputs = Inputs(graph, factor)
    request = BuildRequest(
        backend="tensorrt-rtx",
        graph=str(path),
        out=str(folder / "engine"),
        compute_capability=capability,
        network_name="benchmark",
        input=str(inputs.value.name),
        profiles=[inputs.profile(shape) for shape in shapes.values()],
        options={"tf32": False},
    )
    started = time.perf_counter()
    engine = build_engine(request, "build")
    return engine, time.perf_counter() - started


def measure(graph: Graph, path: Path, capability: str, rounds: int, folder: Path, factor: int = 8) -> dict[str, Any]:
    inputs = Inputs(graph, factor)
    seconds = []
    for _ in range(rounds):
        engine, took = build(graph, path, SHAPES, capability, folder, factor)
        seconds.append(took)
    sizes = [inputs.sizes(*shape.at("max")) for shape in SHAPES.values()]
    estimates = [estimate_memory(graph.model, size, single=False, shape_sets=len(sizes)) for size in sizes]
    return {
        "seconds": round(statistics.median(seconds), 2),
        "engine_bytes": engine.path.stat().st_size,
        "estimated_engine_bytes": estimates[0].engine,
        "activation_bytes": dict(zip(SHAPES, engine.activation_bytes, strict=True)),
        "estimate_over_said": {
            name: round(estimate.activations / said, 3)
            for name, estimate, said in zip(SHAPES, estimates, engine.activation_bytes, strict=True)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capabilities", nargs="+", default=list(CAPABILITIES["tensorrt-rtx"]))
    parser.add_argument("--precisions", nargs="+", default=["fp16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {"tensorrt-rtx": backend_version("tensorrt-rtx"), "builds": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for precision in args.precisions:
            for variant, path in write_graphs(folder, precision).items():
                part = variant.split()[0]
                for capability in args.capabilities:
                    try:
                        figures = measure(load_graph(path, part), path, capability, args.rounds, folder)
                    except Exception as error:
                        figures = {"failed": str(error).splitlines()[0]}
                    result["builds"][f"{variant}, {capability}"] = figures
                    print(f"{variant}, {capability}: {figures}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
