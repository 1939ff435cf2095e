"""Whether an engine is what it says, and fits: told before its bytes reach TensorRT."""

from __future__ import annotations

import mmap
import shlex

from vaedeploy.bundle import Bundle
from vaedeploy.errors import EngineError
from vaedeploy.gpu import Gpu
from vaedeploy.manifest import EngineIdentity, Part

__all__ = ["check_engine", "differences", "engine_faults", "engine_name"]

WORDS = {
    "graph": "the portable graph",
    "rewritten": "the graph made from it by the rewrites",
    "precision": "precision",
    "backend": "backend",
    "backend_version": "the backend's version",
    "compute_capability": "compute capability",
    "gpu": "the GPU model",
    "shapes": "the profile's shapes",
    "options": "the builder's options",
}
"""What each field of an identity is called."""


def engine_name(profile: str, part: Part, backend: str) -> str:
    """Where an engine lies in a bundle."""
    return f"engines/{profile}/{part}.{backend}.engine"


def differences(built: EngineIdentity, wanted: EngineIdentity) -> list[str]:
    """What is not as wanted, a phrase each."""
    found = []
    for field, words in WORDS.items():
        old, new = getattr(built, field), getattr(wanted, field)
        if old != new:
            short = field in ("graph", "rewritten", "shapes", "options")
            found.append(f"{words} is another one" if short else f"{words} was {old} and is {new}")
    return found


def engine_faults(bundle: Bundle, name: str, *, version: str | None = None, gpu: Gpu | None = None) -> list[str]:
    """Why the engine in the file ``name`` cannot be used, a phrase each; empty where nothing speaks against it.

    version: of its backend here, gpu: the one that it is to run on; what is None is not compared. The file's sha256 is
    ``Bundle.open``'s to prove.
    """
    info = bundle.manifest.engines[name]
    identity = info.identity
    found = []
    if identity.graph != bundle.manifest.contents.get(info.part):
        found.append(f"it was built from another graph than the {info.part} that is in the bundle")
    if version is not None and version != identity.backend_version:
        found.append(f"it was built by {identity.backend} {identity.backend_version}, and {version} is installed")
    if gpu is not None and gpu.compute_capability != identity.compute_capability:
        found.append(
            f"it was built for compute capability {identity.compute_capability}, and {gpu.name} has "
            f"{gpu.compute_capability}"
        )
    elif gpu is not None and identity.gpu not in (None, gpu.name):
        found.append(f"it was built for {identity.gpu}, and this is {gpu.name}")
    if not _carries(bundle, name, identity.mark):
        found.append("its bytes do not carry the identity that the manifest gives it")
    return found


def check_engine(bundle: Bundle, name: str, *, version: str | None = None, gpu: Gpu | None = None) -> None:
    """Raise EngineError, saying what differs and what to run, where ``engine_faults`` finds something."""
    faults = engine_faults(bundle, name, version=version, gpu=gpu)
    if faults:
        raise EngineError(f"{bundle.path / name} cannot be used: {'; '.join(faults)}. {rebuild(bundle, name)}")


def rebuild(bundle: Bundle, name: str) -> str:
    """What to run to have the engine anew."""
    info = bundle.manifest.engines[name]
    words = ["vaedeploy", "build", str(bundle.path), "--profile", info.profile, "--backend", info.identity.backend]
    return f"Build it again: {shlex.join(words)}"


def _carries(bundle: Bundle, name: str, mark: bytes) -> bool:
    with (
        (bundle.path / name).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan,
    ):
        return plan.find(mark) >= 0
