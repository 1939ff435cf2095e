"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vaedeploy.bundle import GraphContent
from vaedeploy.errors import BackendError
from vaedeploy.runtime.device import Array
from vaedeploy.runtime.failures import failures_explained
from vaedeploy.system.heap import trim_heap
from vaedeploy.system.installs import age_fault, install_command
from vaedeploy.system.interrupts import ending_early
from vaedeploy.system.machine import usable_cores
from vaedeploy.system.processes import native_call, never_destroyed_in_child

NAME = "onnxruntime-cpu"

PROVIDER = "CPUExecutionProvider"

Read = Callable[[], AbstractContextManager[GraphContent | None]]


class Session:
    """One graph, ready to run. Several threads may call it at the same time.

    graph: its file. read: opens a context with the graph's content, once for each session of ONNX Runtime; the file is
    then only its name in errors. Where the context gives None, the file is read. keep_memory: whether the memory of a
    run is kept for the next one.
    """

    extra_bytes = 0

    def __init__(
        self,
        graph: Path,
        threads: int | None = None,
        providers: Sequence[Any] = (PROVIDER,),
        read: Read = nullcontext,
        keep_memory: bool = False,
    ) -> None:
        self.graph = graph
        self._threads, self._providers, self._read, self._keep_memory = threads, providers, read, keep_memory
        self._session = self._open_again()
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def _open_again(self) -> Any:
        """One more session of ONNX Runtime for the same graph."""
        with self._read() as content:
            return _open(self.graph, _options(self._threads, self._keep_memory), self._providers, content)

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, Array] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Any]:
        """The named outputs: the arrays that ``results`` has for them, new arrays for the others. Raises BackendError
        with ONNX Runtime's message.

        after: not used; ``EngineSession.run`` describes it and ``results``, which are in host memory here.
        """
        with failures_explained("ONNX Runtime", self.graph, inputs), running() as options:
            if not results:
                return self._session.run(outputs, inputs, options)  # type: ignore[no-any-return]
            binding = self._session.io_binding()
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            bind_to_host(binding, outputs, results)
            self._session.run_with_iobinding(binding, options)
            values = dict(zip(outputs, binding.get_outputs(), strict=True))
            return [results[name] if name in results else value.numpy() for name, value in values.items()]


@contextmanager
def running() -> Iterator[Any]:
    """Context of a call that runs a session, with the RunOptions to give it: a signal that asks a command to stop ends
    the run before its next node.
    """
    options = load_library().RunOptions()

    def end() -> None:
        options.terminate = True

    with native_call(), ending_early(end):
        yield options


def open_piece(
    name: Path,
    model: bytes,
    weights: Mapping[str, NDArray[Any]],
    threads: int | None,
    providers: Sequence[Any] = (PROVIDER,),
) -> Any:
    """A session of ONNX Runtime for a piece of a graph, which runs many strips of one size and is closed then.

    name: for errors. weights: by the names that the model has for them. Call it within ``running``. Raises BackendError
    with ONNX Runtime's message.
    """
    options, ort = _options(threads), load_library()
    # The arena suits strips: they have one size, and it is freed with the session.
    options.enable_cpu_mem_arena = True
    # Several pieces are open at once, each with threads of its own: those that wait must not take the cores of others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    if values:
        options.add_external_initializers(list(weights), values)
    return _open(name, options, providers, source=model)


@contextmanager
def only_errors_logged() -> Iterator[None]:
    """Context in which ONNX Runtime's logger for what belongs to no session prints errors only, and no warnings."""
    warnings, errors = 2, 3
    load_library().set_default_logger_severity(errors)
    try:
        yield
    finally:
        load_library().set_default_logger_severity(warnings)


def bind_to_host(binding: Any, outputs: Iterable[str], results: Mapping[str, Any]) -> None:
    """Let outputs be written into the numpy arrays that ``results`` has for them, and the others into new memory."""
    for name in outputs:
        if name in results:
            array = results[name]
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        else:
            binding.bind_output(name)


def measuring_session(graph: Path) -> Any:
    """A session of ONNX Runtime that computes the nodes of a graph as they are, one by one, in their order.

    Call it within ``running``. Raises BackendError with ONNX Runtime's message.
    """
    options, ort = _options(None), load_library()
    # Without fusion, every tensor is computed as the graph has it.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # In the graph's order, each tensor is reduced as soon as it is computed; the default order leaves reductions for
    # the end, with all tensors in memory.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    return _open(graph, options)


def _options(threads: int | None, keep_memory: bool = False) -> Any:
    options = load_library().SessionOptions()
    # The default of ONNX Runtime is one thread for each core of the machine.
    options.intra_op_num_threads = threads or usable_cores()
    # Threads that wait for work in a busy loop save time between the nodes of a graph. After a call they would take the
    # cores from what runs next: a pipeline's PyTorch, or a server's answer.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # The arena keeps the largest memory that any size ever took: a full-size decoder held 2.2 GB after one call at
    # 512x512. Without the arena it held 0.3 GB, with a lower peak (1.5 GB against 2.1) in the same time.
    options.enable_cpu_mem_arena = keep_memory
    # Errors arrive as exceptions; the library would print them to stderr as well.
    options.log_severity_level = 4
    return options


def _open(
    graph: Path,
    options: Any,
    providers: Sequence[Any] = (PROVIDER,),
    content: GraphContent | None = None,
    source: Path | bytes | None = None,
) -> Any:
    ort = load_library()
    try:
        if content is not None:
            # Never an empty table: without one, ONNX Runtime looks for weights in the current directory.
            files = dict(content.weights) or {"-": bytes(1)}
            options.add_external_initializers_from_files_in_memory(
                list(files), list(files.values()), [len(data) for data in files.values()]
            )
        if source is None:
            source = graph if content is None else content.model
        # ONNX Runtime's own fallback would go on with the CPU after a failure, and print that to stdout.
        with native_call():
            session = ort.InferenceSession(source, options, providers=list(providers), enable_fallback=False)
    except Exception as error:
        raise BackendError(f"ONNX Runtime cannot load {graph}: {error}") from error
    if content is not None:
        trim_heap()  # it copied the weights; freed copies of a full-size decoder would keep 0.3 GB
    return never_destroyed_in_child(session)


def load_library() -> Any:
    """The ``onnxruntime`` module. Raises BackendError, naming what to install, if it cannot be imported or is too old.

    Since version 1.29 the module sends the names and hashes of the graphs that it opens to its makers, from a thread
    that hangs the exit of forked processes, unless this variable is set before the module is imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"ONNX Runtime cannot be imported ({error}). Install it: {install_command('cpu')}"
        ) from error
    if fault := age_fault(onnxruntime):
        raise BackendError(f"ONNX Runtime {fault}. Install it: {install_command('cpu')}")
    return onnxruntime


def problem() -> str | None:
    """Why this backend cannot be used on this machine, and what to do about it; None where it can."""
    try:
        load_library()
    except BackendError as error:
        return str(error)
    return None
