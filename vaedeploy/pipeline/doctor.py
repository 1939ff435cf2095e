"""What is installed here, which backends would answer, and what to install for the rest."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from vaedeploy import __version__
from vaedeploy.extras import install_command
from vaedeploy.gpu import Gpu, find_gpu

BASE = ("click", "msgspec", "numpy", "pillow", "rich", "safetensors")
"""The packages that every installation has."""

CUDA = {"cuda-bindings": "cuda.bindings", "cuda-core": "cuda.core"}

EXTRAS = {
    "cpu": {"onnxruntime": "onnxruntime"},
    "cuda": {"onnxruntime-gpu": "onnxruntime", **CUDA},
    "export": {
        "diffusers": "diffusers",
        "huggingface_hub": "huggingface_hub",
        "jinja2": "jinja2",
        "onnx": "onnx",
        "onnx_ir": "onnx_ir",
        "onnxscript": "onnxscript",
        "scikit-image": "skimage",
        "scipy": "scipy",
        "torch": "torch",
    },
    "build": {"onnx": "onnx", "onnx_ir": "onnx_ir", "onnxscript": "onnxscript", "polygraphy": "polygraphy"},
    "rtx": {"tensorrt-rtx": "tensorrt_rtx", **CUDA},
    "tensorrt": {"tensorrt": "tensorrt", **CUDA},
}
"""What each extra adds: a package, and the name that it is imported by. rtx and tensorrt hold build as well."""

PURPOSES = {
    "cpu": "encode, decode, verify",
    "cuda": "the same on an NVIDIA GPU, instead of cpu",
    "export": "export, verify, compare",
    "build": "optimize, bench, and what builds of any backend need",
    "rtx": "build --backend tensorrt-rtx, on any machine, and run on RTX GPUs",
    "tensorrt": "build --backend tensorrt, on the GPU that it is for, and run there",
}
"""The commands that need each extra."""


@dataclass(frozen=True)
class BackendStatus:
    """A backend that this version has. ``problem`` is None where it would answer, else says why not and what to do."""

    name: str
    problem: str | None


@dataclass(frozen=True)
class ExtraStatus:
    """An extra: what needs it, the packages of it that are not installed, and what to run then."""

    name: str
    purpose: str
    missing: tuple[str, ...]
    install: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that ``vaedeploy doctor`` tells. ``packages`` maps names to versions, None where not installed."""

    vaedeploy: str
    python: str
    platform: str
    gpu: Gpu | None
    packages: dict[str, str | None]
    backends: tuple[BackendStatus, ...]
    extras: tuple[ExtraStatus, ...]
    warnings: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Look at this environment. Imports ONNX Runtime, if it is there, and nothing else that is heavy."""
    from vaedeploy.runtime.backends import BACKENDS, problem_of

    names = dict.fromkeys([*BASE, *(package for extra in EXTRAS.values() for package in extra)])
    return Diagnosis(
        vaedeploy=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        gpu=find_gpu(),
        packages={name: version_of(name) for name in names},
        backends=tuple(BackendStatus(name, problem_of(name)) for name in BACKENDS),
        extras=tuple(
            ExtraStatus(extra, PURPOSES[extra], _missing(modules), install_command(extra))
            for extra, modules in EXTRAS.items()
        ),
        warnings=_warnings(),
    )


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


COMMANDS = {"build": ("rtx", "tensorrt"), "optimize": ("build",), "bench": ("build",)}
"""The extras that a command needs, the usual one first; the other ones need the first that has what is missing."""


def advice_for(module: str, command: str | None = None) -> str | None:
    """What to say where ``command`` cannot import ``module`` (a dotted name); None where no extra has that."""
    root = module.partition(".")[0]
    having = [extra for extra, packages in EXTRAS.items() if root in packages.values()]
    if not having:
        return None
    package = next(package for package, name in EXTRAS[having[0]].items() if name == root)
    # rtx and tensorrt hold build.
    own = [extra for extra in COMMANDS.get(command or "", ()) if extra in having or "build" in having]
    first, *others = own or having[:1]
    also = "".join(f" (or [{extra}] for: {PURPOSES[extra]})" for extra in others)
    smaller = ". Without a GPU, install PyTorch's build for CPUs first: it saves gigabytes" if first == "export" else ""
    return (
        f"{command or 'this'} needs {package}, of the extra [{first}], which is not installed. "
        f"Run: {install_command(first)}{also}{smaller}"
    )


def _missing(modules: dict[str, str]) -> tuple[str, ...]:
    """Judged by what can be imported: onnxruntime-gpu serves where onnxruntime is asked for, but not the reverse."""
    return tuple(
        package
        for package, module in modules.items()
        if not _is_there(module) or (package == "onnxruntime-gpu" and version_of(package) is None)
    )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in is not there
        return False


def _onnxruntime_in_use() -> str:
    """The one whose files were written last: it has a CUDA provider, or has none."""
    from vaedeploy.errors import BackendError
    from vaedeploy.runtime import onnxruntime_cpu, onnxruntime_cuda

    try:
        library = onnxruntime_cpu.load_library()
    except BackendError as error:
        return f"neither ({error})"
    name = "onnxruntime-gpu" if onnxruntime_cuda.PROVIDER in library.get_available_providers() else "onnxruntime"
    return f"{name} {library.__version__}"


def _warnings() -> tuple[str, ...]:
    if version_of("onnxruntime") and version_of("onnxruntime-gpu"):
        return (
            "onnxruntime and onnxruntime-gpu are both installed. They write to the same folder; the one in use is "
            f"{_onnxruntime_in_use()}. To choose, run: pip uninstall onnxruntime onnxruntime-gpu, then install one of "
            "them",
        )
    return ()
