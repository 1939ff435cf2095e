"""Checks of an engine before its bytes reach TensorRT: is it undamaged, current, and built for this machine?"""

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
"""Field of ``EngineIdentity`` -> the words for it in ``differences``."""


def engine_name(profile: str, part: Part, backend: str) -> str:
    """The path of an engine in a bundle."""
    return f"engines/{profile}/{part}.{backend}.engine"


def differences(built: EngineIdentity, wanted: EngineIdentity) -> list[str]:
    """A phrase for each field in which an engine's identity ``built`` differs from the ``wanted`` one."""
    phrases = []
    for field, words in FIELD_WORDS.items():
        old, new = getattr(built, field), getattr(wanted, field)
        if old != new:
            is_hash = field in ("graph", "rewritten")
            phrases.append(f"{words} is another one" if is_hash else f"{words} {_as_text(old)}, now {_as_text(new)}")
    return phrases


def _as_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)


def engine_faults(bundle: Bundle, name: str, *, version: str | None = None, verify_hash: bool = True) -> list[str]:
    """The reasons why the engine in the file ``name`` must be built again, a phrase each; empty if there is none.

    version: the installed version of the engine's backend; None to skip that comparison. verify_hash: False to skip the
    file's sha256.
    """
    if damage := bundle.damage(name, verify_hash):
        return [f"it {damage}"]
    info = bundle.manifest.engines[name]
    identity = info.identity
    faults = []
    if identity.graph != bundle.manifest.contents.get(info.part):
        faults.append(f"it was built from another graph than the {info.part} that is in the bundle")
    if version is not None and version != identity.backend_version:
        faults.append(f"it was built by {identity.backend} {identity.backend_version}, and {version} is installed")
    if not carries(bundle.path / name, identity.mark):
        faults.append("it does not contain the identity that the manifest states")
    return faults


def gpu_fault(identity: EngineIdentity, gpu: Gpu) -> str | None:
    """Why an engine without faults of its own cannot run on ``gpu``; None if it can."""
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
    """Raise EngineError, which says what differs and what to run, if the engine in the file ``name`` cannot be used.

    The checks are those of ``engine_faults`` and, if ``gpu`` is given, ``gpu_fault``.
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
    """A sentence with the command that builds the engine again."""
    return f"Build it again: {bundle.manifest.build_command(bundle.path, name)}"


def carries(plan: Path, mark: bytes) -> bool:
    """Whether the engine file ``plan`` contains ``mark``, an ``EngineIdentity.mark``."""
    if not plan.stat().st_size:  # which mmap refuses
        return False
    with (
        plan.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(mark) >= 0
