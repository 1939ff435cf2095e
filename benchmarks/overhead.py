"""Measure the time that the runtime adds to an engine or a session: ``VAE.decode`` and the bare work take turns.

    python benchmarks/overhead.py [--rounds N] [--json FILE]

The figures are microseconds for the demo VAE and one image of 64x64, with arrays in the host's memory and in the GPU's.
"alone" is the work that any program has to do: copy the latent to the GPU, run, copy the image's bytes and the flag for
NaN back, and wait; with arrays in the GPU's memory only run and wait. Both launch CUDA graphs where an engine can be
recorded. The benchmark times engines of a backend that builds on this machine, and ONNX Runtime's CUDA provider, where
they are installed.

Without a GPU, it runs on the tests' stand-in for CUDA's driver, with an engine that does nothing. What it measures then
is the time outside CUDA calls.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from vaedeploy.bundle import Bundle
from vaedeploy.engines.profile import profiles
from vaedeploy.errors import BackendError, VaedeployError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.pipeline.export import export_vae
from vaedeploy.pipeline.turns import take_turns
from vaedeploy.runtime import VAE, cuda, dlpack, onnxruntime_cuda, tensorrt
from vaedeploy.runtime.device import Graphs, Plan
from vaedeploy.runtime.routes import Half
from vaedeploy.system.gpu import Gpu, cuda_devices, find_gpu
from vaedeploy.values.interface import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from cuda_driver import load_driver, show_devices

Call = Callable[[], object]

SIZE = 64


class Idle:
    """An engine that does nothing, for the stand-in, whose device memory is the host's."""

    graphs: Graphs = "recorded"

    def context(self) -> Idle:
        return self

    def settled(self) -> None:
        pass

    def set_shape(self, *_: object) -> int:
        return 1

    def set_scratch(self, _: object) -> None:
        pass

    def bind(self, tensor: str, address: int) -> None:
        if tensor == "finite":
            ctypes.memset(address, 1, 1)  # else the runtime would warn of NaN in each call

    def enqueue(self, _: object) -> None:
        pass


class EngineAlone:
    """An execution context with arrays that are allocated beforehand, without the runtime around it."""

    def __init__(self, device: cuda.CudaDevice, plan: Plan, half: Half, latent: np.ndarray) -> None:
        self._stream = device.stream()
        context, outputs = plan.context(), half.interface.gives(1, SIZE, SIZE)
        with device.active():
            index = next(slot.index for slot in half.slots if slot.shape.holds(1, SIZE, SIZE))
            scratch = device.device_memory(max(1, context.set_shape(index, "latent", latent.shape, self._stream)))
            context.set_scratch(scratch)
            memory = {"latent": device.device_memory(latent.nbytes)}
            memory |= {name: device.device_memory(tensor.size) for name, tensor in outputs.items()}
            for name, place in memory.items():
                context.bind(name, place.address)
            self._given, self._latent = device.host_memory(latent.nbytes), latent
            self._found = {name: device.host_memory(outputs[name].size) for name in ("image_u8", "finite")}
            self._launch: Call = lambda: context.enqueue(self._stream)
            self._launch()
            if plan.graphs == "recorded":
                self._launch = self._stream.capture(lambda: context.enqueue(self._stream))
        self._memory, self._kept = memory, (plan, context, scratch)

    def host(self) -> object:
        size = self._latent.nbytes
        self._given.array[...] = self._latent.reshape(-1).view(np.uint8)
        self._stream.copy_in(self._given.address, self._memory["latent"].address, size)
        self._launch()
        for name, found in self._found.items():
            self._stream.copy_out(self._memory[name].address, found.address, found.size)
        self._stream.synchronize()
        return [found.array.copy() for found in self._found.values()]

    def device(self) -> object:
        self._launch()
        self._stream.synchronize()
        return None


class SessionAlone:
    """A session of ONNX Runtime's CUDA provider, with arrays that are allocated beforehand where it can."""

    def __init__(self, device: cuda.CudaDevice, graph: Path, latent: np.ndarray) -> None:
        import onnxruntime

        options = {"device_id": "0", "use_tf32": "0"}
        providers = [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(graph, providers=providers, enable_fallback=False)
        self._latent, self._binding = latent, self._session.io_binding()
        with device.active():
            self._memory = [device.device_memory(size) for size in (latent.nbytes, 3 * SIZE**2)]
        given, image = (memory.address for memory in self._memory)
        self._binding.bind_input("latent", "cuda", 0, np.float32, latent.shape, given)
        self._binding.bind_output("image_u8", "cuda", 0, np.uint8, (1, SIZE, SIZE, 3), image)
        self._binding.bind_output("finite")

    def host(self) -> object:
        return self._session.run(["image_u8", "finite"], {"latent": self._latent})

    def device(self) -> object:
        return self._session.run_with_iobinding(self._binding)


def overhead(calls: Mapping[str, tuple[Call, Call]], rounds: int) -> dict[str, dict[str, float]]:
    """{kind of memory: figures} in microseconds: both medians, and the median of the differences, turn by turn."""
    found = {}
    for name, (whole, alone) in calls.items():
        times = {}
        for key, (seconds, problem) in take_turns({"vae.decode": whole, "alone": alone}, rounds).items():
            assert problem is None, problem
            times[key] = [1e6 * value for value in seconds]
        added = (a - b for a, b in zip(times["vae.decode"], times["alone"], strict=True))
        found[name] = {key: statistics.median(values) for key, values in times.items()} | {
            "added": statistics.median(added)
        }
    return found


def measure(
    vae: VAE, alone: EngineAlone | SessionAlone, latent: np.ndarray, rounds: int
) -> dict[str, dict[str, float]]:
    device = cuda.CudaDevice(0)
    there = device.array(Tensor(latent.shape, latent.dtype))
    with device.active():
        staged, stream = device.host_memory(latent.nbytes), device.stream_of_thread()
        staged.array[...] = latent.reshape(-1).view(np.uint8)
        stream.copy_in(staged.address, there.address, latent.nbytes)
        stream.synchronize()
        given = dlpack.to_caller(there)
        calls: dict[str, tuple[Call, Call]] = {
            "arrays of the host's": (lambda: vae.decode(latent), alone.host),
            "arrays in the GPU's memory": (lambda: vae.decode(given), alone.device),
        }
        return overhead(calls, rounds)


def of_engine(bundle: Bundle, latent: np.ndarray, rounds: int) -> dict[str, Any]:
    """The overhead on the first decoder engine of the bundle."""
    name, info = next((n, i) for n, i in bundle.manifest.engines.items() if i.part == "decoder")
    backend, device = info.identity.backend, cuda.CudaDevice(0)
    data, sha256 = bundle.read(name), bundle.manifest.files[name].sha256
    plan = tensorrt.load_plan(bundle.path / name, data, backend, sha256, device, True)
    alone = EngineAlone(device, plan, Half(bundle, "decoder", backend, (name,)), latent)
    return measure(VAE(bundle.path, backend, on_nan="warn", profile=info.profile), alone, latent, rounds)


def of_session(bundle: Bundle, latent: np.ndarray, rounds: int) -> dict[str, Any]:
    """The overhead on a session of ONNX Runtime's CUDA provider."""
    alone = SessionAlone(cuda.CudaDevice(0), bundle.graph("decoder", "onnxruntime"), latent)
    return measure(VAE(bundle.path, onnxruntime_cuda.NAME, on_nan="warn"), alone, latent, rounds)


def build(bundle: Bundle, gpu: Gpu) -> Bundle:
    """Build engines for this GPU. Raises VaedeployError where no profile has its capability, or the build fails."""
    fitting = [name for name, p in profiles().items() if p.compute_capability == gpu.compute_capability]
    if not fitting:
        raise BackendError(f"there is no profile for {gpu}")
    return build_engines(bundle, fitting[:1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.getLogger("vaedeploy").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        stand_in = cuda_devices() == 0
        if stand_in:
            show_devices(load_driver(Path(folder)), 1)
        gpu = find_gpu()
        assert gpu is not None
        result: dict[str, Any] = {
            "gpu": "none: a stand-in" if stand_in else str(gpu),
            "python": platform.python_version(),
        }
        bundle = export_vae("demo", out=Path(folder) / "demo")
        shape = (1, bundle.manifest.latent.channels, SIZE // 8, SIZE // 8)
        latent = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        with patch.object(tensorrt, "load_plan", lambda *_: Idle()) if stand_in else nullcontext():
            try:
                result["engine"] = of_engine(build(bundle, gpu), latent, args.rounds)
            except VaedeployError as error:
                result["engine"] = str(error)
        if not stand_in:
            problem = onnxruntime_cuda.problem()
            result["session"] = problem or of_session(bundle, latent, args.rounds)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
