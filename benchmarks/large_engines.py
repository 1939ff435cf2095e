"""Build full-size TensorRT-RTX engines of large sizes with attention whole and in blocks. No GPU is needed.

    python benchmarks/large_engines.py [--parts decoder ...] [--capabilities 8.9 ...] [--json FILE]

For each it prints the seconds of the build, the engine's bytes, the memory in bytes that the builder reports for an
execution context at each size, and the estimate of ``vaedeploy build`` over that. fp16, seeded weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from builds import build

from vaedeploy.engines.estimate import estimate_memory
from vaedeploy.engines.profile import get_profile
from vaedeploy.graph.graph import Graph, Inputs, load_graph, save_form
from vaedeploy.graph.trace import trace_graph
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.source import load_reference
from vaedeploy.values.kinds import PARTS
from vaedeploy.values.shapes import ShapeSet

SINGLE = ShapeSet(height=2048, width=2048)

ENGINES = {
    "1664² alone": {"1664": ShapeSet(height=1664, width=1664)},
    "2048² alone": {"2048": SINGLE},
    "64² to 2048²": {"range": ShapeSet(height=(64, 1024, 2048), width=(64, 1024, 2048))},
    "the shipped sizes": get_profile("rtx4090").shapes,
    "the shipped sizes and 2048²": get_profile("rtx4090").shapes | {"2048": SINGLE},
}


def measure(plain: Graph, shapes: dict[str, ShapeSet], capability: str, blocks: bool, folder: Path) -> dict[str, Any]:
    largest = [Inputs(plain, 8).sizes(*shape.at("max")) for shape in shapes.values()]
    rewritten = rewrite_graph(plain, "tensorrt", "fp16", largest=largest if blocks else ())
    save_form(rewritten.graph, folder / "graph.onnx", shared=False)
    graph = load_graph(folder / "graph.onnx", plain.part)
    engine, seconds = build(graph, folder / "graph.onnx", shapes, capability, folder)
    single = len(shapes) == 1 and next(iter(shapes.values())).static
    said = dict(zip(shapes, engine.activation_bytes, strict=True))
    estimates = [estimate_memory(graph.model, sizes, single=single).activations for sizes in largest]
    return {
        "softmaxes": sum(node.op_type == "Softmax" for node in graph.model.graph),
        "seconds": round(seconds, 1),
        "engine_bytes": engine.path.stat().st_size,
        "activation_bytes": said,
        "estimate_over_said": {
            name: round(found / said[name], 3) for name, found in zip(shapes, estimates, strict=True)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS))
    parser.add_argument("--capabilities", nargs="+", default=["8.9", "12.0"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    reference = load_reference("mse840k", "random:0")
    results: dict[str, Any] = {}
    for part in args.parts:
        plain = trace_graph(reference, part)
        for capability in args.capabilities:
            for name, shapes in ENGINES.items():
                for blocks in (False, True):
                    with tempfile.TemporaryDirectory() as folder:
                        found = measure(plain, shapes, capability, blocks, Path(folder))
                    title = f"{part}, {capability}, {name}, {'in blocks' if blocks else 'whole'}"
                    results[title] = found
                    print(title, found, flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
