"""The ways to compute a bundle with its engines."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.engines import check_engine, read_engine
from vaedeploy.bundle.manifest import EngineInfo
from vaedeploy.errors import BackendError, VaedeployError
from vaedeploy.runtime import tensorrt
from vaedeploy.runtime.candidate import Candidate, Settings
from vaedeploy.runtime.cuda import CudaDevice
from vaedeploy.runtime.engine import EngineSession
from vaedeploy.runtime.routes import Half
from vaedeploy.runtime.runner import Runner
from vaedeploy.runtime.unverified import doubt
from vaedeploy.system.gpu import find_gpu
from vaedeploy.values.kinds import PARTS, Backend, Part, Precision

PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
"""The precisions that engines compute in, the fastest first."""

log = logging.getLogger(__name__)


def engine_candidates(backend: Backend, bundle: Bundle, asked: Settings) -> list[Candidate]:
    """One candidate per precision in which both halves have engines that fit this GPU. Raises BackendError or
    EngineError if there is none.
    """
    device = asked.cuda_device
    names = engine_names(bundle, backend, asked.profile)
    if not names:
        raise BackendError(
            f"bundle {bundle.path} has no engines of {backend}. Build them: vaedeploy build {bundle.path} --profile "
            f"NAME --backend {backend}"
        )
    if problem := tensorrt.problem(backend, device):
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
    opener = partial(_open_engines, bundle, backend, device, asked.verify_hashes)
    return [
        Candidate(backend, precision, partial(opener, parts), tuple(chain(*parts.values())))
        for precision, parts in fastest_first
    ]


def engine_names(bundle: Bundle, backend: str, profile: str | None) -> list[str]:
    """The files of a backend's engines in the bundle, of one profile or of all."""
    engines = bundle.manifest.engines.items()
    return [n for n, info in engines if info.identity.backend == backend and profile in (None, info.profile)]


def _open_engines(
    bundle: Bundle, backend: Backend, device: int, verify_hashes: bool, parts: Mapping[Part, Sequence[str]], part: Part
) -> Runner:
    """Open the engines of one half, and warn of those that are not verified."""
    engines = bundle.manifest.engines
    # Several profiles may contain the same engine. It is opened once, and verified if any of its copies is.
    distinct: dict[str, str] = {}
    for name in sorted(parts[part], key=lambda name: not _is_verified(engines[name])):
        distinct.setdefault(engines[name].identity.digest, name)
    session = open_engines(Half(bundle, part, backend, tuple(distinct.values())), device, verify_hashes)
    for name in distinct.values():
        if not _is_verified(engines[name]):
            log.warning(
                "%s %s. Run: vaedeploy verify %s --backend %s --profile %s",
                bundle.path / name,
                doubt(engines[name].verification, "its GPU"),
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
