"""The backends that can run a bundle's halves on this machine, in order of preference, and why the others cannot."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, InputError, VaedeployError
from vaedeploy.runtime import onnxruntime_cpu, onnxruntime_cuda, openvino, tensorrt
from vaedeploy.runtime.candidate import Candidate, Settings
from vaedeploy.runtime.engine_candidates import engine_candidates, engine_names
from vaedeploy.runtime.graph_candidates import cpu_candidates, cuda_candidates, openvino_candidates, openvino_leads
from vaedeploy.system.gpu import find_gpu
from vaedeploy.values.kinds import Backend

ENGINES: tuple[Backend, ...] = ("tensorrt", "tensorrt-rtx")
"""The backends that run engines; the others run graphs."""

FINDERS: Mapping[str, Callable[[Bundle, Settings], list[Candidate]]] = {
    **{name: partial(engine_candidates, name) for name in ENGINES},
    onnxruntime_cuda.NAME: cuda_candidates,
    onnxruntime_cpu.NAME: cpu_candidates,
    openvino.NAME: openvino_candidates,
}
"""Backend -> what finds its candidates."""

BACKENDS = tuple(FINDERS)
"""All backends, in the order in which they are tried."""

log = logging.getLogger(__name__)


def problem_of(backend: str, device: int | str = 0) -> str | None:
    """Why ``backend`` cannot be used on this machine, and what to do about it; None where it can."""
    number = device if isinstance(device, int) else 0
    if backend in ENGINES:
        return tensorrt.problem(backend, number)
    if backend == openvino.NAME:
        return openvino.problem(openvino.CPU if isinstance(device, int) else device)
    return onnxruntime_cuda.problem(number) if backend == onnxruntime_cuda.NAME else onnxruntime_cpu.problem()


def find_candidates(bundle: Bundle, asked: Settings) -> list[Candidate]:
    """All ways to compute ``bundle`` on this machine, in order of preference. A graph in half precision is followed by
    the same backend in float32, which can rerun the items that half precision cannot hold.

    Raises InputError for a backend that does not exist, a profile that the bundle has no engines of, a profile with a
    backend that runs no engines, and a device that the backend cannot have. Raises BackendError, with every reason, if
    no backend can be used.
    """
    _check(bundle, asked)
    found: dict[str, list[Candidate]] = {}
    reasons: dict[str, str] = {}
    for name in _order(bundle, asked):
        if asked.backend is None and name in ENGINES and not engine_names(bundle, name, asked.profile):
            continue  # a bundle without engines is common, and no reason to report
        if asked.backend is None and name == openvino.NAME and onnxruntime_cpu.NAME in found:
            continue  # ONNX Runtime answers, and importing OpenVINO takes a third of a second
        try:
            found[name] = _of_precision(name, bundle, asked)
        except VaedeployError as error:
            reasons[name] = str(error)
    if not found:
        raise BackendError(". ".join(dict.fromkeys(reasons.values())))
    for name, reason in reasons.items():
        # Unusable engines deserve a warning on a machine with a GPU, or if their profile was named: without a GPU they
        # are expected to be unusable.
        expected = asked.profile is not None or find_gpu(asked.cuda_device) is not None
        warn = name in ENGINES and engine_names(bundle, name, asked.profile) and expected
        unused = "" if asked.profile is None else f", so its engines of profile {asked.profile} are not used"
        level = logging.WARNING if warn else logging.INFO
        log.log(level, "%s is not available%s: %s", name, unused if warn else "", reason)
    return [candidate for candidates in found.values() for candidate in candidates]


def check_backend(name: str) -> None:
    """Raise InputError, which names the backend that may be meant, where there is none of this name."""
    if name in BACKENDS:
        return
    meant = [backend for backend in BACKENDS if name in backend.split("-")]
    meant = meant if len(meant) == 1 else difflib.get_close_matches(name.lower(), BACKENDS, n=1, cutoff=0.75)
    hint = f". Did you mean {meant[0]}?" if meant else ""
    raise InputError(f"there is no backend {name!r}; there is: {', '.join(BACKENDS)}{hint}")


def _order(bundle: Bundle, asked: Settings) -> Sequence[str]:
    """The backends to try. OpenVINO is before ONNX Runtime on the CPU where it was verified and faster."""
    if asked.backend is not None:
        return [asked.backend]
    last = (openvino.NAME, onnxruntime_cpu.NAME) if openvino_leads(bundle, asked) else ()
    return [*(name for name in BACKENDS if name not in last), *last]


def _check(bundle: Bundle, asked: Settings) -> None:
    """Raise InputError for settings that contradict the bundle or each other."""
    backend, profile, device = asked.backend, asked.profile, asked.device
    if backend is not None:
        check_backend(backend)
    if profile is not None and backend is not None and backend not in ENGINES:
        raise InputError(f"{backend} runs graphs and has no profiles, which belong to engines. Leave the profile out")
    if isinstance(device, str) and backend != openvino.NAME:
        raise InputError(f"device is {device!r}, as OpenVINO names one; give backend='openvino' too, or a number")
    built = dict.fromkeys(info.profile for info in bundle.manifest.engines.values())
    if profile is not None and profile not in built:
        raise InputError(
            f"bundle {bundle.path} has no engines of profile {profile!r}; it has those of: "
            f"{', '.join(built) or 'none'}. Build them: vaedeploy build {bundle.path} --profile {profile}"
        )


def _of_precision(name: str, bundle: Bundle, asked: Settings) -> list[Candidate]:
    """The candidates of one backend in the precision that was asked for, and in float32 for what overflows there.
    Raises the backend's reason for having none.
    """
    found = FINDERS[name](bundle, asked)
    if asked.precision is None:
        return found
    if all(candidate.precision != asked.precision for candidate in found):
        has = ", ".join(dict.fromkeys(candidate.precision for candidate in found))
        raise BackendError(f"{name} computes bundle {bundle.path} in {has}, and not in {asked.precision}")
    return [candidate for candidate in found if candidate.precision in (asked.precision, "fp32")]
