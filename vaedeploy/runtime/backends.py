"""Who can compute a bundle's halves here, in the order of preference, and why the others cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.engines import check_engine
from vaedeploy.bundle.manifest import EngineInfo
from vaedeploy.errors import BackendError, InputError, VaedeployError
from vaedeploy.runtime import onnxruntime_cpu, onnxruntime_cuda, tensorrt
from vaedeploy.runtime.cuda import CudaDevice
from vaedeploy.runtime.device import Array, OnDevice
from vaedeploy.runtime.engine import EngineSession
from vaedeploy.runtime.routes import Half
from vaedeploy.system.gpu import find_gpu
from vaedeploy.values.kinds import PARTS, Backend, Form, Part, Precision

ENGINES: tuple[Backend, ...] = ("tensorrt", "tensorrt-rtx")
"""The backends that run engines."""

PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
"""The fastest first."""

BACKENDS = (*ENGINES, onnxruntime_cuda.NAME, onnxruntime_cpu.NAME)
"""The backends that there are, the one that is tried first first."""

NO_PROFILES = "profiles are for engines; {} runs graphs. Leave the profile out"

logger = logging.getLogger("vaedeploy")


class Runner(Protocol):
    """One half, ready to run, from several threads at once if need be."""

    graph: Path
    inputs: list[str]
    outputs: list[str]

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, OnDevice] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Array]:
        """The named outputs, each in memory of its own, or in that of ``results``; see ``EngineSession.run``."""
        ...


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to compute: a backend, the precision that it computes in, what opens a half, and, of a backend that has
    them, the files of its engines in the bundle. Equal to itself alone: it is looked up in every call.
    """

    backend: str
    precision: Precision
    open: Callable[[Part], Runner]
    engines: tuple[str, ...] = ()

    def takes(self, on_device: bool) -> bool:
        """Whether it takes arrays that are there: those of the host, all do."""
        return not on_device or self.backend != onnxruntime_cpu.NAME


def problem_of(backend: str, device: int = 0) -> str | None:
    """Why ``backend`` would not answer here, and what to do; None where it would."""
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
) -> list[Candidate]:
    """All ways to compute ``bundle`` here, the preferred first. A half-precision graph is followed by the same backend
    in float32, which can run again what half precision cannot hold.

    backend: the only one to use; None: all that there are. provider_options: for ONNX Runtime's CUDA provider.
    profile: use the engines of that profile alone; None: all that fit this GPU.

    Raises InputError for a backend or a profile that there is not, or a profile with a backend that runs no engines,
    BackendError where none would answer, with every
    reason.
    """
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"there is no backend {backend!r}; there is: {', '.join(BACKENDS)}")
    built = dict.fromkeys(info.profile for info in bundle.manifest.engines.values())
    if profile is not None and profile not in built:
        raise InputError(
            f"bundle {bundle.path} has no engines of profile {profile!r}; it has those of: "
            f"{', '.join(built) or 'none'}. Build them: vaedeploy build {bundle.path} --profile {profile}"
        )
    if profile is not None and backend is not None and backend not in ENGINES:
        raise InputError(NO_PROFILES.format(backend))
    found: list[Candidate] = []
    reasons: dict[str, str] = {}
    for name in BACKENDS if backend is None else (backend,):
        if backend is None and name in ENGINES and not _engines(bundle, name, profile):
            continue  # most bundles have none, and need none
        try:
            if name in ENGINES:
                found += _of_engines(bundle, name, device, profile, verify_hashes)
            else:
                found += _of_graphs(bundle, name, device, threads, provider_options)
        except VaedeployError as error:
            reasons[name] = str(error)
    if not found:
        raise BackendError(". ".join(dict.fromkeys(reasons.values())))
    for name, reason in reasons.items():
        # Engines that do not answer beside a GPU are news, or where they were asked for; elsewhere they are not.
        asked = profile is not None or find_gpu(device) is not None
        news = name in ENGINES and _engines(bundle, name, profile) and asked
        unused = "" if profile is None else f", so its engines of profile {profile} are not used"
        level = logging.WARNING if news else logging.INFO
        logger.log(level, "%s does not answer here%s: %s", name, unused if news else "", reason)
    return found


def precision_of(bundle: Bundle) -> Precision:
    """What ONNX Runtime's form of a bundle computes in: it has none in bfloat16."""
    return "fp16" if bundle.manifest.precision == "fp16" else "fp32"


def float32_form(bundle: Bundle) -> Form:
    """The form of a bundle's graphs that computes in float32 as well as ONNX Runtime can."""
    return "onnxruntime" if precision_of(bundle) == "fp32" else "portable"


def _of_graphs(
    bundle: Bundle, name: str, device: int, threads: int | None, options: Mapping[str, str] | None
) -> list[Candidate]:
    """Raises BackendError where ONNX Runtime does not answer."""
    if problem := problem_of(name, device):
        raise BackendError(problem)
    opening: Callable[[Path], Runner]
    if name == onnxruntime_cuda.NAME:
        opening = partial(onnxruntime_cuda.Session, device=device, threads=threads, options=options)
    else:
        opening = partial(onnxruntime_cpu.Session, threads=threads)
    precision = precision_of(bundle)
    found = [Candidate(name, precision, _graph_opener(bundle, "onnxruntime", opening))]
    if precision != "fp32":
        found.append(Candidate(name, "fp32", _graph_opener(bundle, float32_form(bundle), opening)))
    return found


def _of_engines(
    bundle: Bundle, backend: Backend, device: int, profile: str | None, verify_hashes: bool
) -> list[Candidate]:
    """A candidate for each precision that there are engines of both halves for. Raises BackendError and EngineError
    where there are none for this GPU.
    """
    names = _engines(bundle, backend, profile)
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
    whole = {precision: parts for precision, parts in halves.items() if len(parts) == len(PARTS)}
    if not whole:
        raise errors[0] if errors else BackendError(f"bundle {bundle.path} has no engine of {backend} for one half")
    fastest_first = sorted(whole.items(), key=lambda item: PRECISIONS.index(item[0]))
    opener = partial(_open_engines, bundle, backend, device, verify_hashes)
    return [
        Candidate(backend, precision, partial(opener, parts), tuple(chain(*parts.values())))
        for precision, parts in fastest_first
    ]


def _engines(bundle: Bundle, backend: str, profile: str | None) -> list[str]:
    """The engines of a backend, of one profile or of all."""
    engines = bundle.manifest.engines.items()
    return [n for n, info in engines if info.identity.backend == backend and profile in (None, info.profile)]


def _open_engines(
    bundle: Bundle, backend: Backend, device: int, verify_hashes: bool, parts: Mapping[Part, Sequence[str]], part: Part
) -> Runner:
    engines = bundle.manifest.engines
    # Profiles of GPUs that take the same engine have it once each; of equal ones a verified one is as good as all.
    once: dict[str, str] = {}
    for name in sorted(parts[part], key=lambda name: not _is_verified(engines[name])):
        once.setdefault(engines[name].identity.digest, name)
    session = open_engines(Half(bundle, part, backend, tuple(once.values())), device, verify_hashes)
    for name in once.values():
        if not _is_verified(engines[name]):
            logger.warning(
                "%s was never compared with PyTorch on its GPU; its pictures may be wrong. Run: vaedeploy verify %s "
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
    """The engines of a half, on a CUDA device. Raises BackendError and EngineError as ``EngineSession`` does."""
    gpu, manifest = CudaDevice(device), half.bundle.manifest

    def load(name: str) -> tensorrt.EnginePlan:
        graphs, sha256 = manifest.engines[name].cuda_graphs, manifest.files[name].sha256
        return tensorrt.load_plan(half.bundle.path / name, half.backend, sha256, gpu, graphs)

    return EngineSession(half, gpu, load, verify_hashes)


def _graph_opener(bundle: Bundle, form: Form, opening: Callable[[Path], Runner]) -> Callable[[Part], Runner]:
    return lambda part: opening(bundle.graph(part, form))
