"""Turns exceptions of libraries that run graphs into errors that say which graph failed, on what, and what to do."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vaedeploy.errors import BackendError
from vaedeploy.runtime.device import Array, shape_of
from vaedeploy.system.interrupts import stop_if_interrupted


@contextmanager
def failures_explained(library: str, graph: Path, inputs: Mapping[str, Array]) -> Iterator[None]:
    """Context in which an exception becomes a BackendError that names the library, the graph and the inputs' shapes."""
    try:
        yield
    except Exception as error:
        stop_if_interrupted()  # which ended the run
        shapes = ", ".join(f"{name} {shape_of(array)}" for name, array in inputs.items())
        advice = ". There is not enough memory: give a smaller batch or size" if is_out_of_memory(error) else ""
        raise BackendError(f"{library} failed in {graph} on {shapes}: {error}{advice}") from error


@contextmanager
def no_memory_explained() -> Iterator[None]:
    """Context in which a MemoryError becomes a BackendError. numpy's message says how much memory it was."""
    try:
        yield
    except MemoryError as error:
        raise BackendError(f"{error or 'There is not enough memory'}. Give a smaller batch or size") from error


def let_go(error: BaseException) -> None:
    """Empty the frames that ``error`` and its causes came through: they keep sessions and arrays.

    For whoever handles an error and then needs that memory. From Python 3.12 on, an error that a context manager raises
    in place of another keeps itself alive by its frames, until garbage is collected.
    """
    one: BaseException | None = error
    while one is not None:
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception of such a library says that memory was lacking, the host's or a device's."""
    # ALLOC_FAILED is a status of cuBLAS and cuDNN, and "resource" means GPU memory. "Enough" is cuda.core's word.
    words = (
        "resource allocation failed",
        "allocate memory",
        "allocate enough memory",
        "bad_alloc",
        "out of memory",
        "smaller than requested bytes",
        "ALLOC_FAILED",
    )
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
