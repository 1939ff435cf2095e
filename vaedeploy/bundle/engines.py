"""Whether an engine is what it says, and fits: told before its bytes reach TensorRT."""

from __future__ import annotations

import mmap
from pathlib import Path

from vaedeploy.bundle.bundle import Bundle
from vaedeploy.bundle.manifest import EngineIdentity
from vaedeploy.errors import EngineError
from vaedeploy.system.gpu import Gpu
from vaedeploy.values.kinds import Part

__all__ = ["carries", "check_engine", "differences", "engine_faults", "engine_name", "gpu_fault", "rebuild"]

FIELD_WORDS = {
    "graph": "the portable graph",
    "rewritten": "the graph made from it by the rewrites",
    "precision": "precision was",
    "backend": "the backend was",
    "backend_version": "the backend's version was",
    "compute_capability": "the compute capability was",
    "gpu": "the GPU model was",
    "shapes": "the sizes were",
    "options": "the builder's options were",
}
"""What each field of an identity is called."""


def engine_name(profile: str, part: Part, backend: str) -> str:
    """Where an engine lies in a bundle."""
    return f"engines/{profile}/{part}.{backend}.engine"


def differences(built: EngineIdentity, wanted: EngineIdentity) -> list[str]:
    """What is not as wanted, a phrase each."""
    found = []
    for field, words in FIELD_WORDS.items():
        old, new = getattr(built, field), getattr(wanted, field)
        if old != new:
            told = field not in ("graph", "rewritten")
            found.append(f"{words} {_told(old)}, now {_told(new)}" if told else f"{words} is another one")
    return found


def _told(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)


def engine_faults(bundle: Bundle, name: str, *, version: str | None = None, verify_hash: bool = True) -> list[str]:
    """Why the engine in the file ``name`` must be built again, a phrase each; empty where nothing speaks against it.

    version: of its backend here; None: it is not compared. verify_hash: prove the file's sha256 too.
    """
    if damage := bundle.damage(name, verify_hash):
        return [f"it {damage}"]
    info = bundle.manifest.engines[name]
    identity = info.identity
    found = []
    if identity.graph != bundle.manifest.contents.get(info.part):
        found.append(f"it was built from another graph than the {info.part} that is in the bundle")
    if version is not None and version != identity.backend_version:
        found.append(f"it was built by {identity.backend} {identity.backend_version}, and {version} is installed")
    if not carries(bundle.path / name, identity.mark):
        found.append("its bytes do not carry the identity that the manifest gives it")
    return found


def gpu_fault(identity: EngineIdentity, gpu: Gpu) -> str | None:
    """Why an engine does not run on ``gpu``, though it may be as it should; None where it does."""
    if gpu.compute_capability != identity.compute_capability:
        return (
            f"it was built for compute capability {identity.compute_capability}, and {gpu.name} has "
            f"{gpu.compute_capability}"
        )
    if identity.gpu not in (None, gpu.name):
        return f"it was built for {identity.gpu}, and this is {gpu.name}"
    return None


def check_engine(
    bundle: Bundle, name: str, *, version: str | None = None, gpu: Gpu | None = None, verify_hash: bool = True
) -> None:
    """Raise EngineError, saying what differs and what to run, where ``engine_faults`` or, with ``gpu``, ``gpu_fault``
    finds something.
    """
    identity = bundle.manifest.engines[name].identity
    if faults := engine_faults(bundle, name, version=version, verify_hash=verify_hash):
        advice = rebuild(bundle, name)
    elif gpu is not None and (fault := gpu_fault(identity, gpu)):
        faults = [fault]
        advice = f"Build for this GPU, with a profile of its own: vaedeploy build {bundle.path} --profile NAME"
    else:
        return
    raise EngineError(f"{bundle.path / name} cannot be used: {'; '.join(faults)}. {advice}")


def rebuild(bundle: Bundle, name: str) -> str:
    """What to run to have the engine anew, as a sentence."""
    return f"Build it again: {bundle.manifest.build_command(bundle.path, name)}"


def carries(plan: Path, mark: bytes) -> bool:
    """Whether an engine's file has ``EngineIdentity.mark`` in it."""
    with (
        plan.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(mark) >= 0
