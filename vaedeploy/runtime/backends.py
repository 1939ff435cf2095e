"""Who can compute a bundle's halves here, in the order of preference, and why the others cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, InputError
from vaedeploy.manifest import Form, Part, Precision
from vaedeploy.runtime import onnxruntime_cpu, onnxruntime_cuda

BACKENDS = (onnxruntime_cuda.NAME, onnxruntime_cpu.NAME)
"""The backends that there are, the one that is tried first first."""

logger = logging.getLogger("vaedeploy")


class Runner(Protocol):
    """One half, ready to run, from several threads at once if need be."""

    graph: Path
    inputs: list[str]
    outputs: list[str]

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The named outputs, each in memory of its own."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A way to compute: a backend, the precision that it computes in, and what opens a half."""

    backend: str
    precision: Precision
    open: Callable[[Part], Runner]


def problem_of(backend: str, device: int = 0) -> str | None:
    """Why ``backend`` would not answer here, and what to do; None where it would."""
    return onnxruntime_cuda.problem(device) if backend == onnxruntime_cuda.NAME else onnxruntime_cpu.problem()


def find_candidates(
    bundle: Bundle,
    backend: str | None,
    device: int = 0,
    threads: int | None = None,
    provider_options: Mapping[str, str] | None = None,
) -> list[Candidate]:
    """All ways to compute ``bundle`` here, the preferred first. A half-precision one is followed by the same backend in
    float32, which can run again what half precision cannot hold.

    backend: the only one to use; None: all that there are. provider_options: for ONNX Runtime's CUDA provider.

    Raises InputError for a backend that there is not, BackendError where none would answer, with every reason.
    """
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"there is no backend {backend!r}; there is: {', '.join(BACKENDS)}")
    wanted = BACKENDS if backend is None else (backend,)
    problems = {name: problem_of(name, device) for name in wanted}
    usable = [name for name, problem in problems.items() if problem is None]
    if not usable:
        raise BackendError(". ".join(dict.fromkeys(filter(None, problems.values()))))
    for name, problem in problems.items():
        if problem is not None:
            logger.info("%s does not answer here: %s", name, problem)
    found = []
    for name in usable:
        opening: Callable[[Path], Runner]
        if name == onnxruntime_cuda.NAME:
            opening = partial(onnxruntime_cuda.Session, device=device, threads=threads, options=provider_options)
        else:
            opening = partial(onnxruntime_cpu.Session, threads=threads)
        found.append(Candidate(name, precision_of(bundle), _graph_opener(bundle, "onnxruntime", opening)))
        if precision_of(bundle) != "fp32":
            found.append(Candidate(name, "fp32", _graph_opener(bundle, "portable", opening)))
    return found


def precision_of(bundle: Bundle) -> Precision:
    """What ONNX Runtime's form of a bundle computes in: it has none in bfloat16."""
    return "fp16" if bundle.manifest.precision == "fp16" else "fp32"


def _graph_opener(bundle: Bundle, form: Form, opening: Callable[[Path], Runner]) -> Callable[[Part], Runner]:
    return lambda part: opening(bundle.graph(part, form))
