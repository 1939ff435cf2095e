"""Time the VAE on a GPU in PyTorch, ONNX Runtime and TensorRT, in turns. Weights are seeded; nothing is downloaded.

    python -m benchmarks.gpu [floor] [speed] [bundle] [overflow] --work DIR [--json FILE] [--rounds N] [--minutes N]

floor: the rates of a large matrix product and a large copy. A decoder cannot be faster than its operations at the
    former.
speed: PyTorch eager, ONNX Runtime's CUDA provider with plain, rewritten and fused graphs, and the package's runtime
    with engines of TensorRT-RTX and TensorRT where they run. They take turns on the same photographs and latents in
    device memory, timed with CUDA events. The results also have the device memory that each takes, and how far its
    output is from PyTorch in float64. torch.compile comes last, in a process of its own, where it takes turns with
    eager, the fused graph, and the fused graph behind the package's runtime, without CUDA graphs and with them. The
    runtime waits for the result of each call, so torch.compile is also timed with a wait after each call. That process
    is stopped if tuning takes too long.
bundle: ``vaedeploy bench`` on the bundle with those engines: whole calls, with arrays in the host's memory.
overflow: a VAE whose residual stream was inflated by 2^17, in half precision, without and with the rescale rule.

Work that does not fit into --minutes is left out, and the results say so. The benchmark needs the package's export
dependencies, onnxruntime-gpu, and for engines tensorrt-rtx or tensorrt with cuda-core. With --cpu it runs on the CPU,
to try it out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.engines import bundle_at
from benchmarks.gpu.measuring import DEVICE, floor, machine
from benchmarks.gpu.onnxruntime import FUSED, sessions
from benchmarks.gpu.overflow import overflow
from benchmarks.gpu.pytorch import compiled
from benchmarks.gpu.runtime import behind_runtime
from benchmarks.gpu.speed import CASES, speed, whole_calls
from vaedeploy.bundle import Bundle
from vaedeploy.source import load_reference


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("floor", "speed", "bundle", "overflow")
    parser.add_argument("parts", nargs="*", help=", ".join(parts))
    parser.add_argument("--work", type=Path, required=True, help="the folder to write graphs to: several GB")
    parser.add_argument(
        "--json", type=Path, help="the file for the figures [default: benchmarks/results/GPU-NAME.json]"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=8, help="the time limit of the whole run, more or less")
    parser.add_argument("--vae", default="mse840k")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--sizes", type=int, nargs="*", help="time only these sizes, in pixels")
    parser.add_argument("--cpu", action="store_true", help="run without a CUDA device, on tiny sizes")
    parser.add_argument("--compiled", nargs=3, metavar=("PART", "SIZE", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if DEVICE == "cpu" and not args.cpu and not args.compiled:
        parser.error("PyTorch sees no CUDA device here; to try this out on the CPU, add --cpu")
    deadline = time.monotonic() + 60 * args.minutes
    weights = None if args.vae == "demo" else args.weights
    reference = load_reference(args.vae, weights)
    if args.compiled:
        part, size, batch = args.compiled
        bundle = bundle_at(reference, args.work)
        path = Bundle.open(bundle).graph(part, "onnxruntime-cuda")

        def fused(x: Any, shape: tuple[int, ...]) -> Any:
            return sessions({FUSED: path}, x, shape, {})[0] | behind_runtime(bundle, part, x, shape)

        with own_stream():
            print(json.dumps(compiled(reference, part, int(size), int(batch), args.rounds, fused)))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    if args.json is None and DEVICE == "cuda":
        name = torch.cuda.get_device_name().replace(" ", "-")
        args.json = Path(__file__).parents[1] / "results" / f"{name}.json"
    cases = [case for case in CASES if not args.sizes or case[1] in args.sizes]
    if DEVICE == "cpu":
        cases = [("decoder", 64, 1), ("encoder", 64, 2)]
    again = [
        "--work",
        str(args.work),
        "--vae",
        args.vae,
        *(["--weights", weights] if weights else []),
        "--rounds",
        str(args.rounds),
    ]
    chosen = args.parts or parts
    result: dict[str, Any] = {"machine": machine()}
    if args.json and args.json.exists():
        before = json.loads(args.json.read_text())
        # If this run covers only some parts, or is cut short, the earlier results of the other parts are kept, with
        # the machine and versions that they were measured on.
        result["before"] = before.pop("before", {}) | {k: v for k, v in before.items() if k == "machine" or k in parts}

    def keep() -> None:
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")

    def keep_rows(rows: list[dict[str, Any]]) -> None:
        result["speed"] = rows
        keep()

    work: dict[str, Callable[[], Any]] = {
        "floor": floor,
        "speed": lambda: speed(
            reference, args.work, cases, args.rounds, deadline, again, result.get("floor"), keep_rows
        ),
        "bundle": lambda: whole_calls(reference, args.work, args.rounds, deadline),
        "overflow": lambda: overflow(reference, args.work),
    }
    for part in chosen:
        started = time.perf_counter()
        with own_stream():
            result[part] = work[part]()
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
        result.get("before", {}).pop(part, None)
        keep()


def own_stream() -> contextlib.AbstractContextManager[Any]:
    """Context in which PyTorch works in a stream of its own, which ONNX Runtime can share, as it cannot the default."""
    return torch.cuda.stream(torch.cuda.Stream()) if DEVICE == "cuda" else contextlib.nullcontext()


if __name__ == "__main__":
    main()
