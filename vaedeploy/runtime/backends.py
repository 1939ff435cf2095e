"""The backends that can run a bundle's halves on this machine, in order of preference, and why the others cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import msgspec

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.engines import check_engine, read_engine
from vaedeploy.bundle.manifest import EngineInfo
from vaedeploy.errors import BackendError, InputError, VaedeployError
from vaedeploy.runtime import onnxruntime_cpu, onnxruntime_cuda, tensorrt
from vaedeploy.runtime.cuda import CudaDevice
from vaedeploy.runtime.device import Array
from vaedeploy.runtime.engine import EngineSession
from vaedeploy.runtime.routes import Half
from vaedeploy.runtime.rows.budget import Budget
from vaedeploy.runtime.rows.session import BoundedSession, RowsHalf
from vaedeploy.system.gpu import find_gpu
from vaedeploy.values.kinds import PARTS, Backend, Form, Part, Precision

ENGINES: tuple[Backend, ...] = ("tensorrt", "tensorrt-rtx")
"""The backends that run engines; the others run graphs."""

PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
"""The precisions that engines compute in, the fastest first."""

BACKENDS = (*ENGINES, onnxruntime_cuda.NAME, onnxruntime_cpu.NAME)
"""All backends, in the order in which they are tried."""

log = logging.getLogger(__name__)


class Runner(Protocol):
    """One half, ready to run. Several threads may run it at the same time."""

    graph: Path
    inputs: list[str]
    outputs: list[str]

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, Array] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Array]:
        """The named outputs, each in a new array or in the one that ``results`` has; see ``EngineSession.run``."""
        ...


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to compute a bundle: a backend, in one precision.

    open: opens a half. engines: the files of its engines in the bundle; empty for a backend that runs graphs.
    Candidates are compared and hashed by identity, which is fast: every call looks one up.
    """

    backend: str
    precision: Precision
    open: Callable[[Part], Runner]
    engines: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU."""
        return self.backend != onnxruntime_cpu.NAME

    def takes(self, on_device: bool) -> bool:
        """Whether it takes arrays in device memory (``on_device``) or in host memory, which all backends take."""
        return not on_device or self.on_gpu


def problem_of(backend: str, device: int = 0) -> str | None:
    """Why ``backend`` cannot be used on this machine, and what to do about it; None where it can."""
    if backend in ENGINES:
        return tensorrt.problem(backend, device)
    return onnxruntime_cuda.problem(device) if backend == onnxruntime_cuda.NAME else onnxruntime_cpu.problem()


def find_candidates(
    bundle: Bundle,
    backend: str | None,
    device: int = 0,
    threads: int | None = None,
    provider_options: Mapping[str, str] | None = None,
    profile: str | None = None,
    verify_hashes: bool = True,
    budget: Budget | None = None,
) -> list[Candidate]:
    """All ways to compute ``bundle`` on this machine, in order of preference. A graph in half precision is followed by
    the same backend in float32, which can run again the items that half precision cannot hold.

    backend: the only backend to use; None uses all. provider_options: for ONNX Runtime's CUDA provider.
    profile: the only profile whose engines are used; None uses all engines that fit this GPU. budget: the memory that
    graphs on the CPU take; None for whatever they need.

    Raises InputError for a backend that does not exist, a profile that the bundle has no engines of, and a profile with
    a backend that runs no engines. Raises BackendError, with every reason, if no backend can be used.
    """
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"there is no backend {backend!r}; there is: {', '.join(BACKENDS)}")
    if profile is not None and backend is not None and backend not in ENGINES:
        raise InputError(f"{backend} runs graphs and has no profiles, which belong to engines. Leave the profile out")
    built = dict.fromkeys(info.profile for info in bundle.manifest.engines.values())
    if profile is not None and profile not in built:
        raise InputError(
            f"bundle {bundle.path} has no engines of profile {profile!r}; it has those of: "
            f"{', '.join(built) or 'none'}. Build them: vaedeploy build {bundle.path} --profile {profile}"
        )
    candidates: list[Candidate] = []
    reasons: dict[str, str] = {}
    for name in BACKENDS if backend is None else (backend,):
        if backend is None and name in ENGINES and not _engine_names(bundle, name, profile):
            continue  # a bundle without engines is common, and no reason to report
        try:
            if name in ENGINES:
                candidates += _engine_candidates(bundle, name, device, profile, verify_hashes)
            else:
                candidates += _graph_candidates(bundle, name, device, threads, provider_options, verify_hashes, budget)
        except VaedeployError as error:
            reasons[name] = str(error)
    if not candidates:
        raise BackendError(". ".join(dict.fromkeys(reasons.values())))
    for name, reason in reasons.items():
        # Unusable engines deserve a warning on a machine with a GPU, or if their profile was named: without a GPU they
        # are expected to be unusable.
        expected = profile is not None or find_gpu(device) is not None
        warn = name in ENGINES and _engine_names(bundle, name, profile) and expected
        unused = "" if profile is None else f", so its engines of profile {profile} are not used"
        level = logging.WARNING if warn else logging.INFO
        log.log(level, "%s does not answer here%s: %s", name, unused if warn else "", reason)
    return candidates


def precision_of(bundle: Bundle) -> Precision:
    """The precision of a bundle's graphs in the form for ONNX Runtime, which is never bfloat16."""
    return "fp16" if bundle.manifest.precision == "fp16" else "fp32"


def float32_form(bundle: Bundle) -> Form:
    """The form of a bundle's graphs for ONNX Runtime in float32: the one made for it, if that is float32, else the
    portable one.
    """
    return "onnxruntime" if precision_of(bundle) == "fp32" else "portable"


def _graph_candidates(
    bundle: Bundle,
    name: str,
    device: int,
    threads: int | None,
    options: Mapping[str, str] | None,
    verify_hashes: bool,
    budget: Budget | None,
) -> list[Candidate]:
    """Candidates that run the graphs on the ONNX Runtime backend ``name``. Raises BackendError if it cannot be used."""
    if problem := problem_of(name, device):
        raise BackendError(problem)

    cuda = name == onnxruntime_cuda.NAME

    def session(precision: Precision, form: Form, more: Mapping[str, str], part: Part) -> Runner:
        graph, read = bundle.graph(part, form), partial(bundle.read_graph, part, form, verify_hashes)
        if cuda:
            return onnxruntime_cuda.Session(graph, device, threads, {**more, **(options or {})}, precision, read)
        if budget is None:
            return onnxruntime_cpu.Session(graph, threads, read=read)
        half = RowsHalf(bundle, part, threads, verify_hashes, budget.progress, budget.workspace)
        return BoundedSession(half, budget, graph, threads, read=read)

    precision = precision_of(bundle)
    open_half = partial(session, precision, "onnxruntime", {})
    if cuda and precision == "fp16":
        fused = partial(session, precision, onnxruntime_cuda.FUSED_FORM, onnxruntime_cuda.FUSED_OPTIONS)
        open_half = partial(_open_fused, bundle, fused, open_half)
    candidates = [Candidate(name, precision, open_half)]
    if precision != "fp32":
        candidates.append(Candidate(name, "fp32", partial(session, "fp32", float32_form(bundle), {})))
    return candidates


def _open_fused(bundle: Bundle, fused: Callable[[Part], Runner], plain: Callable[[Part], Runner], part: Part) -> Runner:
    """Open the form with fused operators, or the one for any provider where the bundle has no such form, or this ONNX
    Runtime lacks an operator.
    """
    if onnxruntime_cuda.FUSED_FORM not in bundle.manifest.graphs[part]:
        return plain(part)
    try:
        runner = fused(part)
    except BackendError as error:
        log.warning("the %s runs without fused operators: %s", part, error)
        return plain(part)
    if not _passed(bundle, onnxruntime_cuda.NAME):
        log.warning(
            "%s was never compared with PyTorch on a GPU; its images may be wrong. Run: vaedeploy verify %s "
            "--backend %s",
            bundle.graph(part, onnxruntime_cuda.FUSED_FORM),
            bundle.path,
            onnxruntime_cuda.NAME,
        )
    return runner


class _Report(msgspec.Struct):
    """What is read of a report of ``vaedeploy verify``."""

    passed: bool


def _passed(bundle: Bundle, backend: str) -> bool:
    """Whether ``vaedeploy verify --backend`` passed for a backend that runs graphs, on any machine. A file that is no
    report says nothing.
    """
    name = f"report/{backend}.json"
    if name not in bundle.manifest.files:
        return False
    try:
        return msgspec.json.decode(bundle.read(name), type=_Report).passed
    except (msgspec.MsgspecError, RecursionError):
        return False


def _engine_candidates(
    bundle: Bundle, backend: Backend, device: int, profile: str | None, verify_hashes: bool
) -> list[Candidate]:
    """One candidate per precision in which engines of both halves fit this GPU. Raises BackendError or EngineError if
    there is none.
    """
    names = _engine_names(bundle, backend, profile)
    if not names:
        raise BackendError(
            f"bundle {bundle.path} has no engines of {backend}. Build them: vaedeploy build {bundle.path} --profile "
            f"NAME --backend {backend}"
        )
    if problem := problem_of(backend, device):
        raise BackendError(problem)
    gpu, version = find_gpu(device), tensorrt.load_library(backend).__version__
    fitting, errors = [], []
    for name in names:
        try:
            check_engine(bundle, name, version=version, gpu=gpu, verify_hash=False)
            fitting.append(name)
        except VaedeployError as error:
            errors.append(error)
    halves: dict[Precision, dict[Part, list[str]]] = {}
    for name in fitting:
        info = bundle.manifest.engines[name]
        halves.setdefault(info.identity.precision, {}).setdefault(info.part, []).append(name)
    complete = {precision: parts for precision, parts in halves.items() if len(parts) == len(PARTS)}
    if not complete:
        raise errors[0] if errors else BackendError(f"bundle {bundle.path} has no engine of {backend} for one half")
    fastest_first = sorted(complete.items(), key=lambda item: PRECISIONS.index(item[0]))
    opener = partial(_open_engines, bundle, backend, device, verify_hashes)
    return [
        Candidate(backend, precision, partial(opener, parts), tuple(chain(*parts.values())))
        for precision, parts in fastest_first
    ]


def _engine_names(bundle: Bundle, backend: str, profile: str | None) -> list[str]:
    """The files of a backend's engines in the bundle, of one profile or of all."""
    engines = bundle.manifest.engines.items()
    return [n for n, info in engines if info.identity.backend == backend and profile in (None, info.profile)]


def _open_engines(
    bundle: Bundle, backend: Backend, device: int, verify_hashes: bool, parts: Mapping[Part, Sequence[str]], part: Part
) -> Runner:
    """Open the engines of one half, and warn of those that were never verified."""
    engines = bundle.manifest.engines
    # Several profiles may contain the same engine. It is opened once, and verified if any of its copies is.
    distinct: dict[str, str] = {}
    for name in sorted(parts[part], key=lambda name: not _is_verified(engines[name])):
        distinct.setdefault(engines[name].identity.digest, name)
    session = open_engines(Half(bundle, part, backend, tuple(distinct.values())), device, verify_hashes)
    for name in distinct.values():
        if not _is_verified(engines[name]):
            log.warning(
                "%s was never compared with PyTorch on its GPU; its images may be wrong. Run: vaedeploy verify %s "
                "--backend %s --profile %s",
                bundle.path / name,
                bundle.path,
                backend,
                engines[name].profile,
            )
    return session


def _is_verified(engine: EngineInfo) -> bool:
    return engine.verification is not None and engine.verification.passed


def open_engines(half: Half, device: int = 0, verify_hashes: bool = True) -> EngineSession:
    """Open the engines of a half on a CUDA device. Raises BackendError and EngineError as ``EngineSession`` does."""
    gpu, manifest = CudaDevice(device), half.bundle.manifest

    def load(name: str) -> tensorrt.EnginePlan:
        graphs, sha256 = manifest.engines[name].cuda_graphs, manifest.files[name].sha256
        plan = read_engine(half.bundle, name, verify_hashes)
        return tensorrt.load_plan(half.bundle.path / name, plan, half.backend, sha256, gpu, graphs)

    return EngineSession(half, gpu, load)
