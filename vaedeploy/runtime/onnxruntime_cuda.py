"""ONNX Runtime on an NVIDIA GPU, through its CUDA provider."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from vaedeploy.errors import BackendError
from vaedeploy.runtime import cuda_graphs, onnxruntime_cpu
from vaedeploy.runtime.cuda import CudaDevice
from vaedeploy.runtime.cuda_graphs import RecordingSession
from vaedeploy.runtime.device import Array, OnDevice, shape_of
from vaedeploy.runtime.failures import failures_explained, is_out_of_memory
from vaedeploy.system.gpu import FORKED, device_problem, was_forked
from vaedeploy.system.installs import install_command
from vaedeploy.values.kinds import Form, Precision

log = logging.getLogger(__name__)

NAME = "onnxruntime-cuda"

PROVIDER = "CUDAExecutionProvider"

MEMORY = "cuda"
"""What ONNX Runtime calls the memory of that provider."""

FUSED_FORM: Form = "onnxruntime-cuda"
"""The form with the provider's own operators."""

FUSED_OPTIONS = {"fuse_conv_bias": "1"}
"""The provider's options for that form: a convolution adds its bias itself, not in another pass over its result. The
decode of a 512x512 image took 8.5 ms with it on an H100, 10.2 without. Channels-first convolutions become slower.
"""

ALIGNMENT = 16
"""Bytes. cuDNN is told that tensors are aligned to this, which is also the width of the kernels' widest loads: a tensor
that is not aligned ends the process's CUDA context with "misaligned address".
"""

SIZES_AT_ONCE = 4
"""How many input sizes are kept ready. Each has an ONNX Runtime session of its own, because a session's convolutions
keep plans only for the last size. Planning again took 0.8 s on an H100 (1.7 s with ``FUSED_OPTIONS``) for a decode that
then took 0.03 s (0.01 s). A session holds the weights and the most memory that its runs took.
"""


class Session(onnxruntime_cpu.Session):
    """One graph on one GPU. Several threads may call it at the same time, but not a process that was forked from the
    one that made it.

    precision: of the graph. options: see ``provider_options``. read: as for the CPU's session.
    """

    def __init__(
        self,
        graph: Path,
        device: int = 0,
        threads: int | None = None,
        options: Mapping[str, str] | None = None,
        precision: Precision = "fp32",
        read: onnxruntime_cpu.Read = nullcontext,
    ) -> None:
        _load_libraries()
        chosen = provider_options(device, precision, options)
        super().__init__(graph, threads, [(PROVIDER, chosen), "CPUExecutionProvider"], read)
        if PROVIDER not in self._session.get_providers():  # ONNX Runtime falls back to the CPU without an error
            raise BackendError(
                f"ONNX Runtime's CUDA provider did not start on device {device} for {graph}, most often because the "
                f"libraries of CUDA or cuDNN are not found. {_install()}"
            )
        self._process = os.getpid()
        self._device = device
        self._recording_on = CudaDevice(device) if cuda_graphs.are_asked(chosen) else None
        # ``gpu_mem_limit`` holds for each session, so with it there is only one.
        self._by_size = BySize(self._recording(self._session), 1 if "gpu_mem_limit" in chosen else SIZES_AT_ONCE)
        self._session = None  # ``_by_size`` alone keeps sessions, and their memory

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, Array] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Any]:
        """Like ``run`` of the CPU's session, but with arrays in device memory too; see ``EngineSession.run``. Raises
        BackendError in a forked process too.
        """
        if os.getpid() != self._process:
            raise BackendError(FORKED)
        with nullcontext() if self._recording_on is None else cuda_graphs.TURNS:
            for array in inputs.values():
                if isinstance(array, OnDevice):
                    array.wait(after)  # ONNX Runtime runs in a stream of its own, which waits for no other stream
            return self._in_session(outputs, inputs, results or {})

    def _in_session(
        self, outputs: Sequence[str], inputs: Mapping[str, Array], targets: Mapping[str, Array]
    ) -> list[Any]:
        size = tuple(shape_of(array) for array in inputs.values())
        session = self._by_size.take(size, lambda: self._recording(self._open_again()))
        try:
            return self._run(session, outputs, inputs, targets)
        except BackendError as error:
            if not is_out_of_memory(error.__cause__) or not self._by_size.drop_others(session):
                raise
        return self._run(session, outputs, inputs, targets)

    def release_memory(self) -> None:
        """Give back all memory of the GPU except that of other threads' runs in progress. The next run loads the graph
        again.
        """
        self._by_size.drop_all()

    def _recording(self, session: Any) -> Any:
        """A session of ONNX Runtime, within one that records CUDA graphs where they are asked for."""
        return session if self._recording_on is None else RecordingSession(session, self._recording_on)

    def _run(
        self, session: Any, outputs: Sequence[str], inputs: Mapping[str, Array], targets: Mapping[str, Array]
    ) -> list[Any]:
        if isinstance(session, RecordingSession):
            return session.run(partial(self._bound_run, session.session), outputs, inputs, targets)
        return self._bound_run(session, None, outputs, inputs, targets)

    def _bound_run(
        self,
        session: Any,
        graph: str | None,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        targets: Mapping[str, Array],
    ) -> list[Any]:
        """graph: the number of the CUDA graph, where they are turned on."""
        if not targets and not any(isinstance(array, OnDevice) for array in inputs.values()):
            with self._running(inputs, graph) as options:
                return session.run(outputs, inputs, options)  # type: ignore[no-any-return]
        binding = session.io_binding()
        given = bind_inputs(binding, inputs, self._device)
        there = {name: array for name, array in targets.items() if isinstance(array, OnDevice)}
        places = {name: aligned_place(array) for name, array in there.items()}
        for name, place in places.items():
            _bind(binding.bind_output, name, place, self._device)
        on_host = {name: array for name, array in targets.items() if name not in places}
        onnxruntime_cpu.bind_to_host(binding, [name for name in outputs if name not in places], on_host)
        with self._running(inputs, graph) as options:
            session.run_with_iobinding(binding, options)  # it returns when the results are there
        del given
        for name, place in places.items():
            if place is not there[name]:
                there[name].copy_from(place)
        values = dict(zip(outputs, binding.get_outputs(), strict=True))
        return [targets[name] if name in targets else value.numpy() for name, value in values.items()]

    @contextmanager
    def _running(self, inputs: Mapping[str, Array], graph: str | None) -> Iterator[Any]:
        """Context of a call of a session, with its RunOptions. graph: the number of the CUDA graph, if any."""
        with failures_explained("ONNX Runtime", self.graph, inputs), onnxruntime_cpu.running() as options:
            if graph is not None:
                options.add_run_config_entry("gpu_graph_id", graph)
            yield options


def bind_inputs(binding: Any, inputs: Mapping[str, Array], device: int) -> list[Array]:
    """Let a run read arrays in either memory. Returns what must be alive until it is over, since a binding keeps no
    array alive: these arrays, or copies of those that are not aligned.
    """
    given = [aligned(array) if isinstance(array, OnDevice) else array for array in inputs.values()]
    for name, array in zip(inputs, given, strict=True):
        if isinstance(array, OnDevice):
            _bind(binding.bind_input, name, array, device)
        else:
            binding.bind_cpu_input(name, array)
    return given


def _bind(bind: Callable[..., None], name: str, array: OnDevice, device: int) -> None:
    bind(name, MEMORY, device, array.tensor.dtype.type, array.tensor.shape, array.address)


class BySize:
    """A session for each of the sizes used last, at most ``limit`` of them.

    first: the session for the first size.
    """

    def __init__(self, first: Any, limit: int) -> None:
        self._sessions: OrderedDict[Hashable, Any] = OrderedDict()
        self._first, self._limit = first, limit  # ``first`` until a size takes it, then None
        self._lock = threading.Lock()

    def take(self, size: Hashable, another: Callable[[], Any]) -> Any:
        """The session for a size: a new one while there are fewer than the limit and room for one, and otherwise the
        one used longest ago. another: opens a session, or raises BackendError.
        """
        with self._lock:
            if size in self._sessions:
                self._sessions.move_to_end(size)
                return self._sessions[size]
            if not self._sessions:
                session, self._first = self._first or another(), None
            else:
                session = self._opened(another) or self._sessions.popitem(last=False)[1]
            self._sessions[size] = session
            return session

    def _opened(self, another: Callable[[], Any]) -> Any:
        """One more session; None where the limit is reached or no memory is left for one."""
        if len(self._sessions) == self._limit:
            return None
        try:
            return another()
        except BackendError as error:
            log.info("no further session is opened: %s", str(error))  # an error that is kept keeps what failed
            return None

    def drop_others(self, session: Any) -> bool:
        """Let go of every session but this one, for their memory. Returns whether there was another."""
        with self._lock:
            others = [size for size, other in self._sessions.items() if other is not session]
            for size in others:
                del self._sessions[size]
            return bool(others)

    def drop_all(self) -> None:
        """Let go of every session, for their memory."""
        with self._lock:
            self._sessions.clear()
            self._first = None


def provider_options(device: int, precision: Precision, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The CUDA provider's options for a graph in ``precision``. given: what the caller chose, which comes first."""
    # TF32 rounds the inputs of float32 convolutions to 10 bits, and float32 bundles are verified without it. Half
    # precision has only 10 bits anyway, and without TF32 ONNX Runtime uses no tensor cores for it either.
    return {"device_id": str(device), "use_tf32": "0" if precision == "fp32" else "1", **(given or {})}


def aligned(array: OnDevice) -> OnDevice:
    """The array, or a copy of it that is aligned. Its device must be active."""
    place = aligned_place(array)
    if place is not array:
        place.copy_from(array)
    return place


def aligned_place(array: OnDevice) -> OnDevice:
    """The array if it is aligned, else memory for one like it. Its device must be active."""
    return array if array.address % ALIGNMENT == 0 else array.device.array(array.tensor)


def _install() -> str:
    return (
        "Uninstall onnxruntime and onnxruntime-gpu, whichever are here: both write to one folder, and pip counts as "
        f"installed what the other has overwritten. Then run: {install_command('cuda')}"
    )


def _load_libraries() -> None:
    """Let ONNX Runtime find the libraries of CUDA and cuDNN that pip installed; by itself it finds only PyTorch's."""
    preload = getattr(onnxruntime_cpu.load_library(), "preload_dlls", None)
    if preload is not None:
        with redirect_stdout(StringIO()):  # it prints what it does not find; ``Session`` raises a better message
            preload()


def problem(device: int = 0) -> str | None:
    """Why this backend cannot be used on this machine, and what to do about it; None where it can."""
    if was_forked():
        return FORKED
    if missing := onnxruntime_cpu.problem():
        return missing
    if PROVIDER not in onnxruntime_cpu.load_library().get_available_providers():
        return f"the ONNX Runtime that is installed has no CUDA provider. {_install()}"
    if missing := device_problem(device):
        return missing
    return None
