"""The VAE on a GPU, each contestant against the others in one run: seeded weights, nothing is downloaded.

    python benchmarks/gpu.py [floor] [speed] [overflow] --work DIR [--json FILE] [--rounds N]

floor: the rates of a large matrix product and a large copy. No decoder is faster than its operations over the one.
speed: PyTorch eager, torch.compile and ONNX Runtime's CUDA provider with plain and rewritten graphs take turns on the
    same photographs and latents, timed with CUDA events; and how far each result is from PyTorch in float64.
overflow: a VAE whose residual stream was inflated by 2^17 in half precision, without and with the rescale rule.

Needs the package's export dependencies and onnxruntime-gpu. Without a CUDA device it runs on the CPU, to try it out.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import gc
import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from vaedeploy.calibrate import measure_maxima
from vaedeploy.errors import InputError
from vaedeploy.export import trace_graph
from vaedeploy.graph import Graph, load_graph, save_form, save_graph
from vaedeploy.photos import Shape, crop_batch, load_photos
from vaedeploy.rewrite.normalization import split_means
from vaedeploy.rewrite.precision import lower_precision
from vaedeploy.rewrite.rescale import rescale
from vaedeploy.rewrite.upsample import fold_upsampling
from vaedeploy.source import Reference, load_reference

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from inflation import INFLATIONS, inflate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROVIDER = "CUDAExecutionProvider" if DEVICE == "cuda" else "CPUExecutionProvider"

TFLOP = {"encoder": {512: 1.117, 1024: 4.879}, "decoder": {512: 2.515, 1024: 10.470}}
"""Operations of the SD architecture for one image: twice the multiply-adds."""

CASES = (("decoder", 512, 1), ("decoder", 1024, 1), ("decoder", 512, 4), ("encoder", 512, 1), ("encoder", 1024, 1))
COMPILED = (("decoder", 512, 1), ("decoder", 1024, 1), ("encoder", 512, 1))
"""Those that torch.compile takes part in: its tuning takes a minute each."""

BASE = "eager fp16"
FP16_FORMS = {
    "fp16": (),
    "fp16, two-stage means": ("two-stage",),
    "fp16, fold as convolutions": ("convolutions",),
    "fp16, fold as transposed": ("transposed",),
}

Run = Callable[[], Tensor]


# -------------------------------------------------------------------------------------------------- measuring


def machine() -> dict[str, Any]:
    facts: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    facts |= {"onnxruntime": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}
    if DEVICE == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        facts["gpu, driver, memory"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        facts |= {"capability": torch.cuda.get_device_capability(), "cuda": torch.version.cuda}
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def seconds(call: Run, repeats: int) -> float:
    """Mean seconds of one call among ``repeats`` that follow each other on the device."""
    if DEVICE == "cpu":
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - started) / repeats
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def take_turns(calls: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; the order is reversed every other round. All are warm when it begins."""
    repeats = {}
    for name, call in calls.items():
        seconds(call, 2)
        repeats[name] = max(2, math.ceil(0.04 / seconds(call, 2)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            times[name].append(seconds(calls[name], repeats[name]))
    return times


def peak_gb(call: Run) -> float | None:
    """GB that PyTorch's allocator holds at most during a call, above what it held before."""
    if DEVICE == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def errors(found: Tensor, expected: Tensor) -> dict[str, float]:
    found = found.double()
    return {
        "rel_l2": float((found - expected).norm() / expected.norm()),
        "not finite": float((~torch.isfinite(found)).double().mean()),
    }


def floor() -> dict[str, float]:
    side, count = (8192, 2**28) if DEVICE == "cuda" else (512, 2**20)
    a, b = (torch.randn(side, side, device=DEVICE).to(torch.float16) for _ in range(2))
    source = torch.randn(count, device=DEVICE)
    target = torch.empty_like(source)
    product = statistics.median(seconds(lambda: a @ b, 10) for _ in range(7))
    moved = statistics.median(seconds(lambda: target.copy_(source), 10) for _ in range(7))
    return {"fp16 matrix product, TFLOP/s": 2 * side**3 / product / 1e12, "copy, TB/s": 8 * count / moved / 1e12}


# ------------------------------------------------------------------------------------------------ contestants


class Half(nn.Module):
    """One half of a VAE in one precision, from float32 to float32 and with the latent contract, like its graph."""

    def __init__(self, reference: Reference, part: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
        super().__init__()
        bare = reference.encoder if part == "encoder" else reference.decoder
        self.bare = copy.deepcopy(bare).requires_grad_(False).to(DEVICE, dtype).to(memory_format=layout)
        self.part, self.dtype = part, dtype
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.scale, self.shift = reference.latent.scale, reference.latent.shift

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.wide)
        if self.part == "decoder":
            return self.bare((x / self.scale + self.shift).to(self.dtype)).to(self.wide)
        return (self.bare(x.to(self.dtype))[0].to(self.wide) - self.shift) * self.scale


def eager(half: nn.Module, x: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Run:
    x = x.contiguous(memory_format=layout)

    @torch.no_grad()
    def call() -> Tensor:
        return half(x)

    return call


def modules(reference: Reference, part: str, x: Tensor, compiled: bool) -> dict[str, Run]:
    plain, last = torch.contiguous_format, torch.channels_last
    fastest = Half(reference, part, torch.float16, last)
    calls = {
        "eager fp32 (TF32 convolutions)": eager(Half(reference, part, torch.float32, plain), x),
        BASE: eager(Half(reference, part, torch.float16, plain), x),
        "eager fp16, channels-last": eager(fastest, x, last),
        "eager bf16, channels-last": eager(Half(reference, part, torch.bfloat16, last), x, last),
    }
    if compiled:
        tuned = torch.compile(fastest, mode="max-autotune", fullgraph=True)
        calls["torch.compile fp16, channels-last, max-autotune"] = eager(tuned, x, last)
    return calls


class Session:
    """A graph on ONNX Runtime, on PyTorch's stream and in PyTorch's memory: nothing is copied."""

    def __init__(self, path: Path, x: Tensor, shape: tuple[int, ...], **options: str) -> None:
        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level = 3
        if DEVICE == "cuda":
            options |= {"user_compute_stream": str(torch.cuda.current_stream().cuda_stream)}
            options |= {"cudnn_conv_algo_search": "EXHAUSTIVE"}
        providers = [(PROVIDER, options)] + ([("CPUExecutionProvider", {})] if DEVICE == "cuda" else [])
        self.session = onnxruntime.InferenceSession(path, quiet, providers=providers)
        if PROVIDER not in self.session.get_providers():
            raise RuntimeError("ONNX Runtime fell back to the CPU")
        self.x, self.result = x.contiguous(), torch.empty(shape, device=DEVICE)
        self.binding = self.session.io_binding()
        given, found = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name
        self.binding.bind_input(given, DEVICE, 0, np.float32, tuple(x.shape), self.x.data_ptr())
        self.binding.bind_output(found, DEVICE, 0, np.float32, shape, self.result.data_ptr())

    def __call__(self) -> Tensor:
        self.session.run_with_iobinding(self.binding)
        return self.result


def write_forms(reference: Reference, folder: Path) -> dict[str, dict[str, Path]]:
    """The ONNX forms of both halves: {part: {name: path}}."""
    forms: dict[str, dict[str, Path]] = {"encoder": {}, "decoder": {}}
    for part, paths in forms.items():
        plain = folder / f"{part}.onnx"
        save_graph(trace_graph(reference, part), plain)
        paths["fp32"] = plain
        paths["fp32, two-stage means"] = folder / f"{part}.two-stage.onnx"
        save_form(rewritten(load_graph(plain, part), ("two-stage",)), paths["fp32, two-stage means"])
        for name, steps in FP16_FORMS.items():
            if part == "encoder" and "fold" in name:
                continue
            graph = rewritten(load_graph(plain, part), steps)
            lower_precision(graph.model, "fp16")
            paths[name] = folder / f"{part}.{'.'.join(('fp16', *steps))}.onnx"
            save_graph(graph, paths[name])
    return forms


def rewritten(graph: Graph, steps: tuple[str, ...]) -> Graph:
    for step in steps:
        if step == "two-stage":
            split_means(graph.model)
        else:
            fold_upsampling(graph.model, step)
    return graph


def sessions(paths: dict[str, Path], x: Tensor, shape: tuple[int, ...]) -> tuple[dict[str, Run], dict[str, str]]:
    """(what runs, what failed and why)."""
    calls: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name, path in paths.items():
        variants = {"": {}, ", NHWC": {"prefer_nhwc": "1"}} if DEVICE == "cuda" and "fp16" in name else {"": {}}
        for label, options in variants.items():
            try:
                calls[f"onnxruntime {name}{label}"] = call = Session(path, x, shape, **options)
                call()
            except Exception as error:  # that it fails is a result
                failed[f"onnxruntime {name}{label}"] = str(error)[:400]
                calls.pop(f"onnxruntime {name}{label}", None)
    return calls, failed


# ------------------------------------------------------------------------------------------------------ parts


@torch.no_grad()
def inputs(reference: Reference, size: int, batch: int) -> dict[str, Tensor]:
    """{part: its input}: photographs, and the latents that the encoder makes of them in float64."""
    photos = torch.from_numpy(crop_batch(load_photos(), Shape("", batch, size, size, False))).to(DEVICE)
    image = photos.permute(0, 3, 1, 2).float() / 127.5 - 1
    encoder = Half(reference, "encoder", torch.float64, torch.contiguous_format)
    return {"encoder": image, "decoder": encoder(image.double()).float()}


def speed(reference: Reference, folder: Path, cases: Any, rounds: int) -> list[dict[str, Any]]:
    forms, rows = write_forms(reference, folder), []
    for part, size, batch in cases:
        x = inputs(reference, size, batch)[part]
        expected = eager(Half(reference, part, torch.float64, torch.contiguous_format), x)()
        calls = modules(reference, part, x, (part, size, batch) in COMPILED)
        memory = {name: peak_gb(call) for name, call in calls.items()}
        found, failed = sessions(forms[part], x, tuple(expected.shape))
        calls |= found
        far = {name: errors(call(), expected) for name, call in calls.items()}
        times = take_turns(calls, rounds)
        for name, values in times.items():
            row = {"part": part, "size": size, "batch": batch, "name": name, "ms": statistics.median(values) * 1e3}
            row["over eager fp16"] = statistics.median(v / b for v, b in zip(values, times[BASE], strict=True))
            row |= far[name] | {"peak GB": memory.get(name)}
            if size in TFLOP[part]:
                row["TFLOP/s"] = TFLOP[part][size] * batch / statistics.median(values)
            rows.append(row)
            print(
                f"{part} {size} x{batch} {name:48s} {row['ms']:8.2f} ms {row['over eager fp16']:6.3f}  "
                f"rel L2 {row['rel_l2']:.1e}  not finite {row['not finite']:.2f}",
                flush=True,
            )
        rows += [{"part": part, "size": size, "batch": batch, "name": n, "failed": why} for n, why in failed.items()]
        for name, why in failed.items():
            print(f"{part} {size} x{batch} {name:48s} FAILED {why}", flush=True)
        del calls, found
        torch.compiler.reset()
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    return rows


def overflow(reference: Reference, folder: Path) -> list[dict[str, Any]]:
    """The VAE as it is and inflated, at 512x512, in fp16: eager, lowered alone, and rescaled before it is lowered."""
    rows = []
    x = inputs(reference, 512 if DEVICE == "cuda" else 64, 1)
    expected = {p: eager(Half(reference, p, torch.float64, torch.contiguous_format), x[p])() for p in x}
    for inflation, (streams, inner) in {"as it is": ([1.0], [1.0]), **INFLATIONS}.items():
        vae = copy.deepcopy(reference)
        for part in ("encoder", "decoder"):
            inflate(getattr(vae, part), itertools.cycle(streams), itertools.cycle(inner))
            plain = folder / "inflated.onnx"
            save_graph(trace_graph(vae, part), plain)
            feed = {load_graph(plain, part).model.graph.inputs[0].name: x[part].cpu().numpy()}
            started = time.perf_counter()
            maxima = measure_maxima(plain, [feed])
            measured = time.perf_counter() - started
            row = {"vae": inflation, "part": part, "largest activation": max(maxima.values())}
            row["calibration s"] = measured
            runs: dict[str, Run] = {
                "eager fp16": eager(Half(vae, part, torch.float16, torch.contiguous_format), x[part])
            }
            for name in ("lowered", "rescaled, lowered"):
                graph = load_graph(plain, part)
                keep: Any = ()
                if name != "lowered":
                    started = time.perf_counter()
                    result = rescale(graph.model, maxima)
                    row["rescale s"] = time.perf_counter() - started
                    keep = result.keep_fp32
                    row |= {"kept in fp32": len(keep), "components scaled": result.outcome.matches}
                try:
                    lower_precision(graph.model, "fp16", keep_fp32=keep)
                except InputError as error:  # a weight beyond the range
                    row[f"{name}: refused"] = str(error)[:300]
                    continue
                path = folder / f"inflated.{name.replace(', ', '.')}.onnx"
                save_graph(graph, path)
                runs[f"onnxruntime fp16, {name}"] = Session(path, x[part], tuple(expected[part].shape))
            for name, call in runs.items():
                row[name] = errors(call(), expected[part])
            rows.append(row)
            print(json.dumps(row), flush=True)
            del runs
            gc.collect()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("floor", "speed", "overflow")
    parser.add_argument("parts", nargs="*", help=", ".join(parts))
    parser.add_argument("--work", type=Path, required=True, help="folder for the graphs: several GB")
    parser.add_argument("--json", type=Path, help="where the figures go [default: results/GPU-NAME.json beside this]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vae", default="mse840k")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--sizes", type=int, nargs="*", help="only these sizes")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.json is None and DEVICE == "cuda":
        name = torch.cuda.get_device_name().replace(" ", "-")
        args.json = Path(__file__).parent / "results" / f"{name}.json"
    reference = load_reference(args.vae, None if args.vae == "demo" else args.weights)
    cases = [case for case in CASES if not args.sizes or case[1] in args.sizes]
    if DEVICE == "cpu":
        cases = [("decoder", 64, 1), ("encoder", 64, 2)]
    work: dict[str, Callable[[], Any]] = {
        "floor": floor,
        "speed": functools.partial(speed, reference, args.work, cases, args.rounds),
        "overflow": functools.partial(overflow, reference, args.work),
    }
    result: dict[str, Any] = {"machine": machine()}
    for part in args.parts or parts:
        started = time.perf_counter()
        with torch.cuda.stream(torch.cuda.Stream()) if DEVICE == "cuda" else contextlib.nullcontext():
            result[part] = work[part]()
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
