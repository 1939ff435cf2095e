"""The VAE on a GPU, each contestant against the others in one run: seeded weights, nothing is downloaded.

    python benchmarks/gpu.py [floor] [speed] [bundle] [overflow] --work DIR [--json FILE] [--rounds N] [--minutes N]

floor: the rates of a large matrix product and a large copy. No decoder is faster than its operations over the one.
speed: PyTorch eager, ONNX Runtime's CUDA provider with plain and rewritten graphs, and the package's runtime with
    engines of TensorRT-RTX and TensorRT where they run, take turns on the same photographs and latents in device
    memory, timed with CUDA events; what device memory each takes, and how far its result is from PyTorch in float64.
    torch.compile comes last, in a process of its own that is stopped where its tuning takes too long, and takes turns
    with eager there.
bundle: ``vaedeploy bench`` on the bundle with those engines: whole calls, from the host and back.
overflow: a VAE whose residual stream was inflated by 2^17 in half precision, without and with the rescale rule.

What does not fit into --minutes is left out, and the results say so. Needs the package's export dependencies,
onnxruntime-gpu, and for engines tensorrt-rtx or tensorrt with cuda-core. With --cpu it runs on the CPU, to try it out.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from vaedeploy.bundle import Bundle
from vaedeploy.cli.tables.known import bench_rows
from vaedeploy.engines.profile import CAPABILITIES
from vaedeploy.errors import BackendError, InputError, VaedeployError
from vaedeploy.graph.graph import Graph, load_graph, save_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.images.photos import crop_batch, load_photos
from vaedeploy.numerics.maxima import measure_maxima
from vaedeploy.pipeline.bench import bench_bundle
from vaedeploy.pipeline.build import build_engines
from vaedeploy.pipeline.export import export_vae
from vaedeploy.rewrite.normalization import split_means
from vaedeploy.rewrite.precision import lower_precision
from vaedeploy.rewrite.rescale import rescale
from vaedeploy.rewrite.upsample import fold_upsampling
from vaedeploy.runtime import VAE
from vaedeploy.runtime.backends import BACKENDS, ENGINES, problem_of
from vaedeploy.source import load_reference
from vaedeploy.system.gpu import find_gpu
from vaedeploy.values.reference import Reference
from vaedeploy.verify.shapes import Shape

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from inflation import INFLATIONS, inflate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROVIDER = "CUDAExecutionProvider" if DEVICE == "cuda" else "CPUExecutionProvider"

TFLOP = {"encoder": {512: 1.117, 768: 2.609, 1024: 4.879}, "decoder": {512: 2.515, 768: 5.754, 1024: 10.470}}
"""Operations of the SD architecture for one image: twice the multiply-adds."""

CASES = tuple((part, size, n) for n in (1, 4) for size in (512, 1024, 768) for part in ("decoder", "encoder"))
"""The most telling ones first: time may run out."""

COMPILED = (("decoder", 512, 1), ("encoder", 512, 1), ("decoder", 1024, 1))
COMPILE_SECONDS = 120
"""What one case of torch.compile may take: its tuning takes minutes for some."""

BASE = "eager fp16"
FP16_FORMS = {"fp16, plain": (), "fp16, rewritten": ("two-stage", "convolutions")}
TOLD = "torch.compile fp16, channels-last, max-autotune"

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


def used_gb() -> float:
    """GB of the device that are taken, by whomever."""
    if DEVICE == "cpu":
        return 0.0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9


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


def modules(reference: Reference, part: str, x: Tensor) -> dict[str, Run]:
    plain, last = torch.contiguous_format, torch.channels_last
    return {
        BASE: eager(Half(reference, part, torch.float16, plain), x),
        "eager fp16, channels-last": eager(Half(reference, part, torch.float16, last), x, last),
        "eager bf16": eager(Half(reference, part, torch.bfloat16, plain), x),
    }


def compiled(reference: Reference, part: str, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """torch.compile and eager in turns, as a row of ``speed``."""
    x = inputs(reference, size, batch)[part]
    last = torch.channels_last
    tuned = torch.compile(Half(reference, part, torch.float16, last), mode="max-autotune", fullgraph=True)
    calls = {BASE: eager(Half(reference, part, torch.float16, torch.contiguous_format), x), TOLD: eager(tuned, x, last)}
    far = errors(calls[TOLD](), exact(reference, part, x))
    times = take_turns(calls, rounds)
    return row_of(part, size, batch, TOLD, times, far)


def compiled_elsewhere(case: tuple[str, int, int], seconds: float, arguments: list[str]) -> dict[str, Any]:
    """``compiled`` in a process that is stopped after ``seconds``."""
    part, size, batch = case
    row = {"part": part, "size": size, "batch": batch, "name": TOLD}
    command = [sys.executable, __file__, "--compiled", part, str(size), str(batch), *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return row | {"failed": f"its tuning was not done after {seconds:.0f} s"}
    if ended.returncode:
        return row | {"failed": ended.stderr.strip()[-400:]}
    return json.loads(ended.stdout.splitlines()[-1])


# -------------------------------------------------------------------------------------------------- engines


PROFILE = """
gpu = "{gpu.name}"
compute_capability = "{gpu.compute_capability}"
memory_gib = {gpu.memory_gib}
backend = "{backend}"
precision = "{precision}"
[shapes]
{shapes}
"""


BUILT = {
    "tensorrt": [("fp16", ((512, 1), (1024, 1), (512, 4)))],
    "tensorrt-rtx": [(p, tuple((s, n) for s in (512, 768, 1024) for n in (1, 4))) for p in ("fp16", "bf16")],
}
"""Precisions, and sizes with their batch, each an optimisation profile of its own. TensorRT takes minutes for each."""


def build_bundle(reference: Reference, folder: Path, deadline: float) -> tuple[Path, dict[str, str]]:
    """A bundle with engines of what builds here for this GPU before the deadline, and why the others are not there."""
    place, failed = folder / "bundle", {}
    made = export_vae(reference, out=place, precision="fp16", verify=False, force=True)
    gpu = find_gpu()
    for backend in ENGINES:
        for precision, sizes in BUILT[backend]:
            name = f"{precision}-{backend}"
            shapes = [f"s{size}x{n} = {{ height = {size}, width = {size}, batch = {n} }}" for size, n in sizes]
            try:
                if time.monotonic() > deadline:
                    raise BackendError("no time was left")
                if gpu is None or gpu.compute_capability not in CAPABILITIES[backend]:
                    raise BackendError(f"{backend} builds nothing for {gpu}")
                text = PROFILE.format(gpu=gpu, backend=backend, precision=precision, shapes="\n".join(shapes))
                (folder / f"{name}.toml").write_text(text)
                made = build_engines(made, [name], folder=folder)
            except VaedeployError as error:
                failed[name] = str(error)[:400]
    return place, failed


def engines(
    bundle: Path, part: str, x: Tensor, shape: tuple[int, ...], memory: dict[str, float | None]
) -> tuple[dict[str, Run], dict[str, str]]:
    """The package's runtime with each profile's engines, from and to PyTorch's tensors: as ``sessions``."""
    calls: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for profile in dict.fromkeys(info.profile for info in Bundle.open(bundle).manifest.engines.values()):
        precision, backend = profile.split("-", 1)
        name = f"{backend} {precision}, vaedeploy"
        before = used_gb()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the bundle is not verified is known
                vae = VAE(bundle, backend, profile=profile)
            out = torch.empty(shape, device=DEVICE)

            def decode(vae: VAE = vae, out: Tensor = out) -> Tensor:
                return vae.decode(x, output="float", out=out)

            def encode(vae: VAE = vae) -> Tensor:
                return torch.from_dlpack(vae.encode(x))

            calls[name] = decode if part == "decoder" else encode
            calls[name]()
            memory[name] = used_gb() - before
        except Exception as error:  # that it fails is a result
            failed[name] = str(error)[:400]
            calls.pop(name, None)
    return calls, failed


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
        for name, steps in FP16_FORMS.items():
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
            fold_upsampling(graph.model, step)  # which finds nothing in an encoder
    return graph


def sessions(
    paths: dict[str, Path], x: Tensor, shape: tuple[int, ...], memory: dict[str, float | None]
) -> tuple[dict[str, Run], dict[str, str]]:
    """(what runs, what failed and why). memory: takes the GB that each holds after a call."""
    calls: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name, path in paths.items():
        before = used_gb()
        try:
            calls[f"onnxruntime {name}"] = call = Session(path, x, shape)
            call()
            memory[f"onnxruntime {name}"] = used_gb() - before
        except Exception as error:  # that it fails is a result
            failed[f"onnxruntime {name}"] = str(error)[:400]
            calls.pop(f"onnxruntime {name}", None)
    return calls, failed


# ------------------------------------------------------------------------------------------------------ parts


@torch.no_grad()
def inputs(reference: Reference, size: int, batch: int) -> dict[str, Tensor]:
    """{part: its input}: photographs, and the latents that the encoder makes of them in float64, an item at a time: a
    batch of large ones would not fit.
    """
    photos = torch.from_numpy(crop_batch(load_photos(), Shape("", batch, size, size, False))).to(DEVICE)
    image = photos.permute(0, 3, 1, 2).float() / 127.5 - 1
    return {"encoder": image, "decoder": exact(reference, "encoder", image).float()}


@torch.no_grad()
def exact(reference: Reference, part: str, x: Tensor) -> Tensor:
    """PyTorch's own in float64, an item at a time, as ``inputs``."""
    half = Half(reference, part, torch.float64, torch.contiguous_format)
    return torch.cat([half(item) for item in x.split(1)])


def row_of(
    part: str, size: int, batch: int, name: str, times: dict[str, list[float]], far: dict[str, float]
) -> dict[str, Any]:
    values = times[name]
    row = {"part": part, "size": size, "batch": batch, "name": name, "ms": statistics.median(values) * 1e3}
    row["over eager fp16"] = statistics.median(v / b for v, b in zip(values, times[BASE], strict=True))
    return row | far


def tell(row: dict[str, Any], ceilings: dict[str, float] | None) -> None:
    """A line of the table; the share of the floor goes into the row."""
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
    reference: Reference, forms: dict[str, Path], bundle: Path, case: tuple[str, int, int], rounds: int
) -> list[dict[str, Any]]:
    """A row for each contestant of a case."""
    part, size, batch = case
    x = inputs(reference, size, batch)[part]
    expected = exact(reference, part, x)
    calls = modules(reference, part, x)
    memory = {name: peak_gb(call) for name, call in calls.items()}
    shape, rows = tuple(expected.shape), []
    for found, lost in (sessions(forms, x, shape, memory), engines(bundle, part, x, shape, memory)):
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
    """A row for each contestant of each case. keep: is given all rows after each, should the machine be taken away."""
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        tell(row, ceilings)
        keep(rows)

    forms = write_forms(reference, folder)
    # A third of the time at most begins a build, so that there is something to compare its engines with.
    bundle, failed = build_bundle(reference, folder, time.monotonic() + (deadline - time.monotonic()) / 3)
    for name, why in failed.items():
        add({"part": "both", "size": 0, "batch": 0, "name": name, "failed": why})
    for part, size, batch in cases:
        if time.monotonic() > deadline:
            add({"part": part, "size": size, "batch": batch, "name": "everything", "failed": "no time was left"})
            continue
        try:
            for row in contest(reference, forms[part], bundle, (part, size, batch), rounds):
                add(row)
        except torch.OutOfMemoryError as error:  # of a smaller GPU, in one of PyTorch's contestants
            add({"part": part, "size": size, "batch": batch, "name": "everything", "failed": str(error)[:400]})
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    for case in COMPILED if DEVICE == "cuda" else cases:
        left = deadline - time.monotonic()
        if left < 30:
            add(dict(zip(("part", "size", "batch"), case, strict=True), name=TOLD, failed="no time was left"))
        else:
            add(compiled_elsewhere(case, min(left, COMPILE_SECONDS), arguments))
    return rows


def whole_calls(bundle: Path, rounds: int, deadline: float) -> Any:
    """``vaedeploy bench`` on the bundle that ``speed`` made. Beside a GPU the CPU would take minutes."""
    if time.monotonic() > deadline:
        return "no time was left"
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


def overflow(reference: Reference, folder: Path) -> list[dict[str, Any]]:
    """The VAE as it is and inflated, at 512x512, in fp16: eager, lowered alone, and rescaled before it is lowered."""
    rows = []
    x = inputs(reference, 512 if DEVICE == "cuda" else 64, 1)
    expected = {p: exact(reference, p, x[p]) for p in x}
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
    parts = ("floor", "speed", "bundle", "overflow")
    parser.add_argument("parts", nargs="*", help=", ".join(parts))
    parser.add_argument("--work", type=Path, help="folder for the graphs: several GB")
    parser.add_argument("--json", type=Path, help="where the figures go [default: results/GPU-NAME.json beside this]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=8, help="what all of it may take, more or less")
    parser.add_argument("--vae", default="mse840k")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--sizes", type=int, nargs="*", help="only these sizes")
    parser.add_argument("--cpu", action="store_true", help="go on without a CUDA device, on tiny sizes")
    parser.add_argument("--compiled", nargs=3, metavar=("PART", "SIZE", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if DEVICE == "cpu" and not args.cpu and not args.compiled:
        parser.error("PyTorch sees no CUDA device here; to try this out on the CPU, add --cpu")
    deadline = time.monotonic() + 60 * args.minutes
    weights = None if args.vae == "demo" else args.weights
    reference = load_reference(args.vae, weights)
    if args.compiled:
        part, size, batch = args.compiled
        print(json.dumps(compiled(reference, part, int(size), int(batch), args.rounds)))
        return
    if args.work is None:
        parser.error("--work is missing")
    args.work.mkdir(parents=True, exist_ok=True)
    if args.json is None and DEVICE == "cuda":
        name = torch.cuda.get_device_name().replace(" ", "-")
        args.json = Path(__file__).parent / "results" / f"{name}.json"
    cases = [case for case in CASES if not args.sizes or case[1] in args.sizes]
    if DEVICE == "cpu":
        cases = [("decoder", 64, 1), ("encoder", 64, 2)]
    again = ["--vae", args.vae, *(["--weights", weights] if weights else []), "--rounds", str(args.rounds)]
    chosen = args.parts or parts
    result: dict[str, Any] = {"machine": machine()}
    if args.json and args.json.exists():
        before = json.loads(args.json.read_text())
        # A run of some parts, or one that is cut short, keeps what was found of the others, and on which versions.
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
        "bundle": lambda: whole_calls(args.work / "bundle", args.rounds, deadline),
        "overflow": lambda: overflow(reference, args.work),
    }
    for part in chosen:
        started = time.perf_counter()
        with torch.cuda.stream(torch.cuda.Stream()) if DEVICE == "cuda" else contextlib.nullcontext():
            result[part] = work[part]()
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
        result.get("before", {}).pop(part, None)
        keep()


if __name__ == "__main__":
    main()
