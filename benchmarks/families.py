"""Measure every family of VAEs at its full size, with seeded weights. Nothing is downloaded, and no GPU is needed.

    python benchmarks/families.py [STEP ...] [--vaes NAME ...] [--rounds 5] [--size 256] --work DIR [--json FILE]

STEP is one of these, all of them by default, in this order; each runs in a process of its own.

export: an export in fp32 with its verification: seconds of the clock and of the CPU for each stage, peak memory.
graphs: parameters, operations at 512x512, and what each rule did to the graphs.
precisions: the worst relative L2 in fp16 and bf16, on the golden cases of the export; bf16 is emulated, fp16 too.
speed: the rewritten graph over the plain export and over PyTorch eager, in turns, at ``--size``.
builds: TensorRT-RTX engines in fp16 for compute capability 8.9 and 12.0: seconds, bytes, scratch memory.

``--json`` is written after each step. What it has already is kept, unless ``--again`` is given.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from main_job import ratio, take_turns

VAES = (
    "mse840k",
    "flux2",
    "qwen-image",
    "qwen-image-2.1",
    "wan-2.2",
    "taesd",
    "dc-ae-f32c32",
    "hunyuanimage",
    "kandinsky22",
    "stable-cascade",
    "asymmetric-x1.5",
    "svd",
    "kvae-2d",
)
"""Presets that stand for the families: where two have the same architecture, one of them."""

RESULTS = Path(__file__).parent / "results" / "families.json"
CAPABILITIES = ("8.9", "12.0")


@dataclasses.dataclass
class Stages:
    """A ``Progress`` that adds up the seconds of each stage."""

    def __post_init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._stage, self._since = "Loading", (time.perf_counter(), time.process_time())

    def __call__(self, what: str, done: float, total: float) -> None:
        now = (time.perf_counter(), time.process_time())
        wall, cpu = self.seconds.setdefault(self._stage, [0.0, 0.0])
        self.seconds[self._stage] = [wall + now[0] - self._since[0], cpu + now[1] - self._since[1]]
        self._stage, self._since = what, now


def export(vae: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import vaedeploy as vd

    stages = Stages()
    started = time.perf_counter(), time.process_time()
    failed = None
    try:
        vd.export_vae(vae, weights="random:0", out=folder, force=True, progress=stages)
    except vd.VerificationError as error:
        failed = str(error)
    stages("", 0, 0)
    rows = {what: {"wall s": round(w, 1), "CPU s": round(c, 1)} for what, (w, c) in stages.seconds.items()}
    return {
        "wall s": round(time.perf_counter() - started[0], 1),
        "CPU s": round(time.process_time() - started[1], 1),
        "peak resident MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024 / 1000),
        "load when it ended": os.getloadavg(),
        "stages": rows,
        "failed": failed,
        **worst(json.loads((folder / "report" / "report.json").read_bytes())),
    }


def worst(report: Mapping[str, Any]) -> dict[str, Any]:
    """The largest relative L2 of each form in a report's document, and the cases that missed a limit."""
    forms: dict[str, float] = {}
    for case in report["cases"]:
        forms[case["form"]] = max(forms.get(case["form"], 0.0), case["rel_l2"] or float("inf"))
    return {"relative L2": forms, "failures": [f"{c['part']}, {c['name']}" for c in report["cases"] if c["failures"]]}


def graphs(vae: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import vaedeploy as vd
    from vaedeploy.graph.graph import load_graph
    from vaedeploy.graph.operations import count_operations
    from vaedeploy.rewrite import rewrite_graph

    bundle = vd.Bundle.open(folder, verify_hashes=False)
    found: dict[str, Any] = {
        "latent channels": bundle.manifest.latent.channels,
        "factor": bundle.manifest.latent.factor,
    }
    for part in ("encoder", "decoder"):
        plain = load_graph(bundle.graph(part), part)
        made = rewrite_graph(plain)
        size = 512 // found["factor"] if part == "decoder" else 512
        counts = {
            form: count_operations(graph.model, {str(d): size if i else 1 for i, d in enumerate(symbols(graph))})
            for form, graph in {"before": plain, "after": made.graph}.items()
        }
        found[part] = {
            "parameters": sum(
                value.const_value.size for value in plain.model.graph.initializers.values() if value.const_value
            ),
            "TFLOP": {form: count.total / 1e12 for form, count in counts.items()},
            "nodes": {"before": len(list(plain.model.graph)), "after": len(list(made.graph.model.graph))},
            "Resize": sum(node.op_type == "Resize" for node in plain.model.graph),
            "rules": {outcome.rule: outcome.matches for outcome in made.outcomes},
            "left alone": {o.rule: [r.reason for r in o.refusals] for o in made.outcomes if o.refusals},
        }
    return found


def symbols(graph: Any) -> list[Any]:
    """The symbolic dimensions of a graph's input, the batch first."""
    return [dim for dim in graph.model.graph.inputs[0].shape if not isinstance(dim, int)]


def precisions(vae: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import msgspec

    import vaedeploy as vd
    from vaedeploy.bundle.calibration import NAME, decode_calibration
    from vaedeploy.bundle.golden import NAME as GOLDEN
    from vaedeploy.bundle.golden import decode_golden
    from vaedeploy.bundle.graphs import graph_names
    from vaedeploy.pipeline.graphs import write_forms
    from vaedeploy.verify.graphs import verify_graphs

    bundle = vd.Bundle.open(folder, verify_hashes=False)
    calibration = decode_calibration(bundle.read(NAME))
    cases = decode_golden(bundle.read(GOLDEN), bundle.manifest.vae.identity)
    result = {}
    for precision in ("fp16", "bf16"):
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            copy = Path(name)
            for part in ("encoder", "decoder"):
                for file in folder.glob(f"{part}.onnx*"):
                    shutil.copy(file, copy)
            rules = write_forms(copy, precision, calibration, rules=True)
            manifest = msgspec.structs.replace(bundle.manifest, precision=precision, graphs=graph_names(copy), rows={})
            report = verify_graphs(manifest, copy, cases, "", None, lambda *_: None)
        result[precision] = {"rules": rules, **worst(report.to_document())}
    return result


def speed(vae: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import torch

    import vaedeploy as vd
    from vaedeploy.images.photos import crop_batch, load_photos
    from vaedeploy.runtime.onnxruntime_cpu import Session
    from vaedeploy.source import load_reference
    from vaedeploy.verify.graphs import prepare_photo

    bundle = vd.Bundle.open(folder, verify_hashes=False)
    reference = load_reference(vae, "random:0")
    channels = bundle.manifest.latent.image_channels
    photo = crop_batch(load_photos(channels=channels), 1, args.size, args.size, channels=channels)
    image = prepare_photo(bundle.manifest, photo)
    result: dict[str, Any] = {"size": args.size, "rounds": args.rounds}
    given = image
    for part in ("encoder", "decoder"):
        sessions = {form: Session(bundle.graph(part, form)) for form in ("portable", "onnxruntime")}
        half, raw = getattr(reference, part), torch.from_numpy(given)
        calls: dict[str, Callable[[], Any]] = {
            form: functools.partial(session.run, session.outputs[:1], {session.inputs[0]: given})
            for form, session in sessions.items()
        }

        def eager(half: Any = half, raw: Any = raw) -> Any:
            with torch.no_grad():
                return half(raw)

        calls["PyTorch eager"] = eager
        times = take_turns(calls, args.rounds)
        result[part] = {name: {"s": statistics.median(values)} for name, values in times.items()}
        for other in ("portable", "PyTorch eager"):
            pairs = [a / b for a, b in zip(times["onnxruntime"], times[other], strict=True)]
            result[part][f"over {other}"] = {
                "median": ratio(times["onnxruntime"], times[other]),
                "lowest": min(pairs),
                "highest": max(pairs),
            }
        given = np.ascontiguousarray(calls["onnxruntime"]()[0])
    return result


def builds(vae: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    from builds import SHAPES
    from builds import measure as build

    import vaedeploy as vd
    from vaedeploy.bundle.calibration import NAME, decode_calibration
    from vaedeploy.engines.build import backend_version
    from vaedeploy.graph.graph import load_graph, save_form
    from vaedeploy.rewrite import rewrite_graph

    bundle = vd.Bundle.open(folder, verify_hashes=False)
    calibration = decode_calibration(bundle.read(NAME))
    result: dict[str, Any] = {"tensorrt-rtx": backend_version("tensorrt-rtx"), "profile": "rtx4090"}
    for part in ("encoder", "decoder"):
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            path = Path(name) / f"{part}.onnx"
            plain = load_graph(bundle.graph(part), part)
            made = rewrite_graph(plain, "tensorrt", "fp16", maxima=calibration.of(part))
            save_form(made.graph, path, shared=False)
            for capability in CAPABILITIES:
                try:
                    figures = build(
                        load_graph(path, part), path, capability, 1, Path(name), bundle.manifest.latent.factor
                    )
                except Exception as error:
                    figures = {"failed": str(error).splitlines()[0]}
                result[f"{part} {capability}"] = figures | {"shapes": len(SHAPES)}
    return result


STEPS: dict[str, Callable[[str, Path, argparse.Namespace], dict[str, Any]]] = {
    "export": export,
    "graphs": graphs,
    "precisions": precisions,
    "speed": speed,
    "builds": builds,
}


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    named = {name.strip(): value.strip() for name, value in fields.items()}
    return f"{named['model name']}, family {named['cpu family']}, model {named['model']}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--vaes", nargs="+", default=list(VAES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the bundles")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure what --json has already")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # this process is that of a step
    args = parser.parse_args()
    steps = args.steps or list(STEPS)
    if args.here:
        print(json.dumps(STEPS[steps[0]](args.vaes[0], args.work / args.vaes[0], args)))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    results = json.loads(args.json.read_text()) if args.json.exists() else {}
    for vae in args.vaes:
        for step in steps:
            if step in results.get(vae, {}) and not args.again:
                continue
            numbers = ("--rounds", str(args.rounds), "--size", str(args.size), "--work", str(args.work))
            command = (sys.executable, __file__, step, "--vaes", vae, *numbers, "--here")
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if ended.returncode:
                print(f"{vae}: {step} failed, exit code {ended.returncode}", flush=True)
                break
            figures = json.loads(ended.stdout.splitlines()[-1])
            figures["made with"] = {
                "CPU": cpu_name(),
                "Python": platform.python_version(),
                **{name: version(name) for name in ("torch", "onnxruntime", "diffusers", "onnxscript")},
            }
            results.setdefault(vae, {})[step] = figures
            args.json.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{vae}: {step}: {figures}", flush=True)


if __name__ == "__main__":
    main()
