"""Which profiles are built by which backend, after a check that each build can start on this machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vaedeploy.bundle import Bundle
from vaedeploy.engines.build import backend_version
from vaedeploy.engines.profile import CAPABILITIES, NAME, NAME_RULE, Options, Profile, get_profile
from vaedeploy.errors import BackendError, BundleError, InputError, ProfileError
from vaedeploy.system.arguments import as_list
from vaedeploy.system.gpu import Gpu, find_gpu
from vaedeploy.system.installs import install_command
from vaedeploy.values.kinds import Backend

__all__ = ["Job", "plan_builds", "plan_rebuilds"]


@dataclass(frozen=True)
class Job:
    """One profile, and the backend and version that builds it. gpu: this machine's, if the backend builds on it."""

    profile: Profile
    backend: Backend
    version: str
    gpu: Gpu | None

    @property
    def gpu_name(self) -> str | None:
        """The only GPU model that the engines run on; None if they run on every model of the compute capability."""
        compatible = self.profile.options.hardware_compatibility == "same-compute-capability"
        return self.gpu.name if self.gpu and not compatible else None


WITHOUT_ENGINES = (
    "Without engines, ONNX Runtime computes on that GPU. Run: vaedeploy export VAE --precision fp16 --form "
    "onnxruntime-cuda"
)


def plan_builds(
    profiles: Sequence[str], *, backend: Backend | None = None, folder: str | Path | None = None
) -> tuple[Job, ...]:
    """The jobs of ``build_engines``, after a check that they can start. Raises InputError, ProfileError and
    BackendError as ``build_engines`` does.
    """
    if backend is not None and backend not in CAPABILITIES:
        raise InputError(f"there is no backend {backend!r} that builds; there is: {', '.join(CAPABILITIES)}")
    names = as_list("profiles", profiles)
    if not names:
        raise InputError("profiles is empty; name one GPU kind or more. To see all: vaedeploy profiles")
    found = [get_profile(name, folder) for name in dict.fromkeys(names)]
    pairs = [(profile, backend or profile.backend) for profile in found]
    for profile, used in pairs:
        try:
            profile.check_backend(used)
        except ValueError as error:
            raise ProfileError(f"profile {profile.name}: {error}. {WITHOUT_ENGINES}") from error
    return _jobs(pairs)


def plan_rebuilds(bundle: Bundle) -> tuple[Job, ...]:
    """The jobs that build the engines of ``bundle`` again, with what their identities record. Raises BackendError as
    ``plan_builds`` does, and BundleError for an engine that cannot come from a profile.
    """
    pairs = {}
    for name, info in bundle.manifest.engines.items():
        identity = info.identity
        try:
            if not NAME.fullmatch(info.profile):
                raise ValueError(f"its profile is {info.profile!r}; the name of one {NAME_RULE}")
            profile = Profile(
                name=info.profile,
                gpu=identity.gpu or info.profile,
                compute_capability=identity.compute_capability,
                memory_gib=math.inf,  # the engine was built, so it fitted
                backend=identity.backend,
                precision=identity.precision,
                shapes=identity.shapes,
                options=msgspec.convert(identity.options, Options),
                cuda_graphs=info.cuda_graphs,
            )
        except (msgspec.MsgspecError, ValueError) as error:
            raise BundleError(
                f"{name} of bundle {bundle.path} cannot be built again: {error}. Export the bundle again: "
                f"{bundle.manifest.export_command(bundle.path)}"
            ) from error
        pairs[info.profile, identity.backend] = profile, identity.backend
    return _jobs(list(pairs.values()))


def _jobs(pairs: Sequence[tuple[Profile, Backend]]) -> tuple[Job, ...]:
    """A job for each pair. Raises BackendError if a backend needs another GPU than this machine's, or does not load."""
    gpu = find_gpu() if any(used == "tensorrt" for _, used in pairs) else None
    for profile, used in pairs:
        if used == "tensorrt":  # checked before the import, since installing it would not help
            _check_gpu(profile, gpu)
    versions = {used: backend_version(used) for used in dict.fromkeys(used for _, used in pairs)}
    return tuple(Job(p, used, versions[used], gpu if used == "tensorrt" else None) for p, used in pairs)


def _check_gpu(profile: Profile, gpu: Gpu | None) -> None:
    if gpu is None or gpu.compute_capability != profile.compute_capability:
        here = f"this machine has {gpu.name} ({gpu.compute_capability})" if gpu else "this machine has no GPU"
        other = profile.compute_capability in CAPABILITIES["tensorrt-rtx"]
        raise BackendError(
            f"tensorrt builds on the GPU that it builds for: profile {profile.name} wants compute capability "
            f"{profile.compute_capability}, and {here}. Build there ({install_command('tensorrt')})"
            + (", or here with --backend tensorrt-rtx" if other else f". {WITHOUT_ENGINES}")
        )
