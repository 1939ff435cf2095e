"""The process that builds an engine: ``python -m vaedeploy.engines.worker``.

A process serves one backend, since Polygraphy chooses it at import. If TensorRT crashes or is killed because memory
runs out, only this process ends. It reads one request, a line of JSON, from stdin, and writes events, a line of JSON
each, to stdout. The end of stdin means that nobody waits for the engine any more. TensorRT's log and output go to
stderr.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from vaedeploy.engines.protocol import Advanced, BuildRequest, Built, Event, Failed, Missing, Ready
from vaedeploy.system.installs import ENGINE_MODULES
from vaedeploy.system.oserrors import shortage
from vaedeploy.values.kinds import Backend

Emit = Callable[[Event], None]


def main() -> None:
    """Serve one request."""
    emit = _claim_stdout()
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=BuildRequest)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if request.backend == "tensorrt-rtx" else "0"
    try:
        emit(Ready(_load(request.backend, emit).__version__))
        if request.graph is not None:
            emit(_build(request, emit))
    except Exception as error:
        emit(Failed(str(error) or type(error).__name__, shortage(error)))
        raise


def _claim_stdout() -> Emit:
    """Reserve stdout for events: everything else that is printed there, also by C++, goes to stderr."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(event: Event) -> None:
        events.write(msgspec.json.encode(event) + b"\n")

    return emit


def _leave_with_parent() -> None:
    """End this process when stdin ends, which it does when the parent process dies."""
    while os.read(0, 4096):  # not through sys.stdin, whose lock Python needs at exit
        pass
    os._exit(1)


def _load(backend: Backend, emit: Emit) -> Any:
    """The backend's module. Emits ``Missing`` and ends the process if it or Polygraphy cannot be imported."""
    for package in (ENGINE_MODULES[backend], "polygraphy"):
        try:
            __import__(package)
        except Exception as error:  # without its library or driver, a package may raise anything
            emit(Missing(package, str(error) or type(error).__name__))
            _leave()
    return sys.modules[ENGINE_MODULES[backend]]


def _leave() -> NoReturn:
    sys.stderr.flush()
    os._exit(0)  # not sys.exit, which would unload half-loaded libraries


def _build(request: BuildRequest, emit: Emit) -> Built:
    from polygraphy.backend.trt import Profile, engine_bytes_from_network, network_from_onnx_path
    from polygraphy.logger import G_LOGGER

    G_LOGGER.colors = False  # the parent process searches the log for plain text
    G_LOGGER.module_severity = G_LOGGER.VERBOSE  # TensorRT reports its memory at this level only
    builder, network, parser = network_from_onnx_path(request.graph, strongly_typed=True)
    network.name = request.network_name
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    built = Built(
        {t.name: f"{_type(t)} {tuple(t.shape)}" for t in tensors},
        dict(Counter(f"{layer.type.name.lower()} {_type(layer.get_output(0))}" for layer in layers).most_common()),
    )
    profiles = [Profile().add(request.input, *corners) for corners in request.profiles]
    config = _config(request, profiles, _Monitor(emit).of_tensorrt())
    plan = (builder, network, parser)
    engine = engine_bytes_from_network(plan, config=config, save_timing_cache=request.timing_cache)
    with Path(request.out).open("wb") as file:
        file.write(engine)
        os.fsync(file.fileno())
    return built


def _type(tensor: Any) -> str:
    name: str = tensor.dtype.name.lower()
    return {"float": "float32", "half": "float16", "bf16": "bfloat16"}.get(name, name)


def _config(request: BuildRequest, profiles: list[Any], monitor: Any) -> Any:
    from polygraphy.backend.trt import CreateConfig, PostprocessConfig

    module = sys.modules[ENGINE_MODULES[request.backend]]
    options = request.options
    kwargs: dict[str, Any] = {"profiles": profiles, "progress_monitor": monitor}
    if request.backend == "tensorrt":
        if options["hardware_compatibility"] == "same-compute-capability":
            kwargs["hardware_compatibility_level"] = module.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
        kwargs["builder_optimization_level"] = options.get("optimization_level")
        cache = request.timing_cache
        kwargs["load_timing_cache"] = cache if cache and Path(cache).exists() else None
        create = CreateConfig(**kwargs)
    else:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        major, minor = map(int, request.compute_capability.split("."))
        # Always named: TensorRT-RTX's default, an engine for all of 8.x and 12.x, plans twice the memory for a range of
        # sizes.
        create = CreateConfigRTX(compute_capabilities=[(major, minor)], **kwargs)

    def set_tf32(builder: Any, network: Any, config: Any) -> None:
        # Always set, since Polygraphy's two config classes have opposite defaults.
        change = config.set_flag if options["tf32"] else config.clear_flag
        change(module.BuilderFlag.TF32)

    return PostprocessConfig(create, set_tf32)


class _Monitor:
    """Turns TensorRT's nested phases into the share of the build that is done, which only grows."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.share = 0.0
        self.phases: dict[str, tuple[str | None, float, int]] = {}  # name -> parent, steps done, steps in all

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self.phases[name] = parent, 0, max(1, steps)

    def advance(self, name: str, step: int) -> None:
        parent, _, steps = self.phases[name]
        self.phases[name] = parent, step + 1, steps
        share = (step + 1) / steps
        while parent in self.phases:
            name = parent
            parent, done, steps = self.phases[name]
            share = (done + min(share, 1.0)) / steps
        if share >= self.share + 0.01:
            self.share = min(share, 1.0)
            self.emit(Advanced(self.share))

    def of_tensorrt(self) -> Any:
        """An ``IProgressMonitor`` that passes TensorRT's progress on to this object."""
        from polygraphy.mod.trt_importer import lazy_import_trt

        tensorrt = lazy_import_trt()
        outer = self

        class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                tensorrt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                outer.start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                outer.advance(phase_name, step)
                return True

            def phase_finish(self, phase_name: str) -> None:
                outer.phases.pop(phase_name, None)

        return Monitor()


if __name__ == "__main__":
    main()
