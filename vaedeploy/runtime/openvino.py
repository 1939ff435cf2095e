"""OpenVINO, on the CPU and on the other devices that it knows.

Compiled graphs are not stored: a full-size decoder compiles in half a second, and loading it compiled takes 0.4 s and a
file of its size.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from traceback import clear_frames
from typing import Any

import numpy as np

from vaedeploy.bundle import GraphContent
from vaedeploy.errors import BackendError
from vaedeploy.runtime.device import Array
from vaedeploy.runtime.failures import failures_explained
from vaedeploy.runtime.onnxruntime_cpu import Read
from vaedeploy.system.heap import trim_heap
from vaedeploy.system.installs import age_fault, install_command
from vaedeploy.system.interrupts import ending_early
from vaedeploy.system.machine import cpu_flags, cpu_name, usable_cores
from vaedeploy.system.processes import native_call, never_destroyed_in_child
from vaedeploy.values.kinds import Precision

NAME = "openvino"

CPU = "CPU"

TYPES: Mapping[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
"""The precisions that it computes in -> OpenVINO's names of them."""

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})
"""Linux's names of the CPU features that compute in bfloat16; the last is Arm's."""


class Session:
    """One graph on one device. Several threads may call it at the same time.

    graph: its file, in float32. precision: what it is computed in. device: OpenVINO's name of it, such as "GPU.0".
    threads: of a call on the CPU; as many calls as the cores have room for run at once, and further ones wait.
    keep_memory: whether the memory of a run stays for the next one. read: as for ONNX Runtime's session.

    Raises BackendError for a device that is not there, and with OpenVINO's message where it refuses the graph.
    """

    def __init__(
        self,
        graph: Path,
        precision: Precision = "fp32",
        device: str = CPU,
        threads: int | None = None,
        keep_memory: bool = False,
        read: Read = nullcontext,
    ) -> None:
        self.graph, self._keep_memory, self._device, self._read = graph, keep_memory, device, read
        self._options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": TYPES[precision]}
        if device == CPU:
            calls = max(1, usable_cores() // threads) if threads else 1
            self._options |= {"NUM_STREAMS": calls, "INFERENCE_NUM_THREADS": calls * (threads or usable_cores())}
            # Two processes that pin their threads take the same cores, however many others are idle.
            self._options["ENABLE_CPU_PINNING"] = False
        self._running, self._lock = 0, threading.Lock()
        self.extra_bytes = 0
        """A run packs the weights of its convolutions. A full-size decoder, of 236 MB, took 0.15 GB more in float32
        than in ONNX Runtime at 256x256, and no more at 512x512.
        """
        with native_call():
            self._model: Any = self._compile()
            self.inputs = [value.any_name for value in self._model.inputs]
            self.outputs = [value.any_name for value in self._model.outputs]

    def _compile(self) -> Any:
        """The compiled graph. Within ``native_call``, which must not be entered twice: at the end of the process the
        inner one would wait for ever.
        """
        core = _core()
        _refuse_fork()
        with self._read() as content:
            if content is not None:
                self.extra_bytes = sum(map(len, content.weights.values()))
            try:
                with _on_disk(self.graph, content) as path:
                    model = core.compile_model(core.read_model(path), self._device, self._options)
            except BackendError:
                raise
            except Exception as error:
                raise BackendError(f"OpenVINO cannot load {self.graph} on {self._device}: {error}") from error
        trim_heap()
        return never_destroyed_in_child(model)

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, Array] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Any]:
        """The named outputs: the arrays that ``results`` has for them, new arrays for the others. Raises BackendError
        with OpenVINO's message.

        after: not used; ``EngineSession.run`` describes it and ``results``, which are in host memory here.
        """
        # A request's destructor is a call into OpenVINO, too: it waits without Python's lock. So no request may outlive
        # this context. The inner method's goes with its frame, which an exception would keep alive.
        with failures_explained("OpenVINO", self.graph, inputs), native_call():
            try:
                return self._infer(outputs, inputs, results or {})
            except BaseException as error:
                clear_frames(error.__traceback__)
                raise

    def _infer(self, outputs: Sequence[str], inputs: Mapping[str, Array], results: Mapping[str, Array]) -> list[Any]:
        make_tensor = load_library().Tensor
        with self._in_use() as model:
            # A request keeps the arrays that it was given, and making one takes 0.1 ms.
            request = model.create_infer_request()
            for name, array in inputs.items():
                # OpenVINO takes only arrays that may be written to, though it writes into no input.
                given: Any = np.require(array, requirements=["C", "W"])
                request.set_tensor(name, make_tensor(given, shared_memory=True))
            for name, array in results.items():
                request.set_tensor(name, make_tensor(array, shared_memory=True))
            with ending_early(request.cancel):
                request.start_async()
                request.wait()
            # The request is in no closure: what a comprehension's frame refers to stays where frames are cleared.
            computed = zip(outputs, map(request.get_tensor, outputs), strict=True)
            return [results[name] if name in results else tensor.data.copy() for name, tensor in computed]

    @contextmanager
    def _in_use(self) -> Iterator[Any]:
        """Context of a run, with the compiled graph.

        The last run that ends gives the memory back: OpenVINO refuses that while others run. After a run that failed
        the graph is compiled again, since its nodes keep the shapes of that run, and refuse others (2026.4).
        """
        with self._lock:
            if self._model is None:
                self._model = self._compile()
            model = self._model
            self._running += 1
        try:
            yield model
        except BaseException:
            with self._lock:
                self._model = None if self._model is model else self._model
            raise
        finally:
            with self._lock:
                self._running -= 1
                if self._model is model and not self._running and not self._keep_memory:
                    model.release_memory()


@contextmanager
def _on_disk(graph: Path, content: GraphContent | None) -> Iterator[Path]:
    """Context with a file to read the graph from. ``content``, which is checked already, is written to a temporary
    folder: OpenVINO takes weights beside an ONNX graph from files only.
    """
    if content is None:
        yield graph
        return
    files = {graph.name: content.model, **content.weights}
    with ExitStack() as stack:
        try:
            # A TemporaryDirectory would go when the process begins to end, while a daemon thread reads from it.
            folder = tempfile.mkdtemp(prefix="vaedeploy-")
            # On Windows and NFS, files cannot be removed while OpenVINO maps them.
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            for name, data in files.items():
                Path(folder, name).write_bytes(data)
        except OSError as error:
            needed = sum(map(len, files.values())) / 1e6
            raise BackendError(
                f"OpenVINO reads {graph.name} from a file in the folder for temporary files, which cannot be written: "
                f"{error}. Set TMPDIR to a folder that has {needed:,.1f} MB"
            ) from error
        yield Path(folder, graph.name)


_importing = threading.Lock()
"""Held while ``sys.modules`` hides the telemetry package, which another thread would put back."""


@cache
def load_library() -> Any:
    """The ``openvino`` module. Raises BackendError, naming what to install, if it cannot be imported or is too old.

    Importing it sends a message to its makers and writes an identifier into the user's home, unless its telemetry
    package is missing (2026.4). So that package is hidden while ``openvino`` is imported.
    """
    with _importing:
        return _import_quietly()


def _import_quietly() -> Any:
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # which is how Python spells "cannot be imported"
    try:
        import openvino
    except ImportError as error:
        raise BackendError(
            f"OpenVINO cannot be imported ({error}). Install it: {install_command('openvino')}"
        ) from error
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
    if fault := age_fault(openvino):
        raise BackendError(f"OpenVINO {fault}. Install it: {install_command('openvino')}")
    return openvino


@cache
def _core() -> Any:
    return never_destroyed_in_child(load_library().Core())


_compiled_by: int | None = None
"""Id of the process that first compiled a graph; a forked process inherits the value."""


def _refuse_fork() -> None:
    """Raise BackendError in a process that was forked after OpenVINO was used: compiling a graph there waits for ever
    for a thread that is not in it (2026.4).
    """
    global _compiled_by
    if _compiled_by not in (None, os.getpid()):
        raise BackendError(
            "this process was forked after OpenVINO was used, which does not survive a fork. Start it with "
            "multiprocessing's 'spawn', or give backend='onnxruntime-cpu'"
        )
    _compiled_by = os.getpid()


def problem(device: str = CPU) -> str | None:
    """Why this backend cannot be used on this machine, and what to do about it; None where it can."""
    try:
        with native_call():
            devices = _core().available_devices
    except BackendError as error:
        return str(error)
    # "GPU" is the first of several that are called GPU.0 and so on.
    if device not in devices and device not in {name.partition(".")[0] for name in devices}:
        return f"OpenVINO has no device {device!r} here; it has: {', '.join(devices) or 'none'}"
    return None


def processor(device: str) -> str:
    """What computes on a device, as verdicts name it."""
    if device == CPU:
        return cpu_name()
    with native_call():
        return str(_core().get_property(device, "FULL_DEVICE_NAME"))


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; OpenVINO emulates them on others that have AVX-512."""
    return not BFLOAT16_FLAGS.isdisjoint(cpu_flags())


def takes_bfloat16(device: str = CPU) -> bool:
    """Whether a device computes in bfloat16 when asked to. Others silently compute in float32, as CPUs without AVX-512
    do (2026.4).
    """
    with native_call():
        return "BF16" in _core().get_property(device, "OPTIMIZATION_CAPABILITIES")


def gains_from_bfloat16() -> bool:
    """Whether OpenVINO is faster in bfloat16 than in float32 on this CPU."""
    return has_bfloat16() and takes_bfloat16()
