"""TensorRT and TensorRT-RTX in the GPU benchmark: engines behind the package's runtime."""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor

from benchmarks.gpu.measuring import Run, used_gb
from benchmarks.gpu.runtime import call_of, open_vae
from vaedeploy.bundle import Bundle
from vaedeploy.engines.profile import CAPABILITIES
from vaedeploy.errors import BackendError, VaedeployError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.pipeline.export import export_vae
from vaedeploy.runtime.backends import ENGINES, problem_of
from vaedeploy.system.gpu import find_gpu
from vaedeploy.values.reference import Reference

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
"""Backend -> precisions, each with its (size in pixels, batch) pairs. Each pair is an optimisation profile of its own,
for which TensorRT takes minutes.
"""


def bundle_at(reference: Reference, folder: Path) -> Path:
    """The bundle of the benchmark, which is exported if it is not there."""
    place = folder / "bundle"
    if not place.exists():
        export_vae(reference, out=place, precision="fp16", forms=["onnxruntime-cuda"], verify=False)
    return place


def build_engines_until(deadline: float, reference: Reference, folder: Path) -> tuple[Path | None, dict[str, str]]:
    """Build engines for this GPU. Returns the bundle, or None without any, and {engine: why it was not built}."""
    failed: dict[str, str] = {}
    gpu = find_gpu()
    built: Path | None = None
    for backend in ENGINES:
        for precision, sizes in BUILT[backend]:
            name = f"{precision}-{backend}"
            shapes = [f"s{size}x{n} = {{ height = {size}, width = {size}, batch = {n} }}" for size, n in sizes]
            try:
                if time.monotonic() > deadline:
                    raise BackendError("no time was left")
                if gpu is None or gpu.compute_capability not in CAPABILITIES[backend]:
                    raise BackendError(f"{backend} builds nothing for {gpu}")
                if problem := problem_of(backend):
                    raise BackendError(problem)
                text = PROFILE.format(gpu=gpu, backend=backend, precision=precision, shapes="\n".join(shapes))
                (folder / f"{name}.toml").write_text(text)
                build_engines(bundle_at(reference, folder), [name], folder=folder)
                built = bundle_at(reference, folder)
            except VaedeployError as error:
                failed[name] = str(error)[:400]
    return built, failed


def engines(
    bundle: Path, part: str, x: Tensor, shape: tuple[int, ...], memory: dict[str, float | None]
) -> tuple[dict[str, Run], dict[str, str]]:
    """The runtime with the engines of each profile, on PyTorch tensors. Takes and gives what ``sessions`` does."""
    calls: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for profile in dict.fromkeys(info.profile for info in Bundle.open(bundle).manifest.engines.values()):
        precision, backend = profile.split("-", 1)
        name = f"{backend} {precision}, vaedeploy"
        before = used_gb()
        try:
            calls[name] = call_of(open_vae(bundle, backend, profile=profile), part, x, shape)
            calls[name]()
            memory[name] = used_gb() - before
        except Exception as error:  # a failure is a result too
            failed[name] = str(error)[:400]
            calls.pop(name, None)
    return calls, failed
