"""What is installed here, which backends work, and what to install for the rest: what ``vaedeploy doctor`` shows."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from vaedeploy.system.gpu import Gpu, find_gpu
from vaedeploy.system.installs import BASE, EXTRAS, PURPOSES, install_command, missing_packages, version_of
from vaedeploy.system.machine import cpu_name
from vaedeploy.version import __version__


@dataclass(frozen=True)
class BackendStatus:
    """A backend of this version. ``problem`` is None where it works here; otherwise it says why not and what to do."""

    name: str
    problem: str | None


@dataclass(frozen=True)
class ExtraStatus:
    """An optional extra of this package.

    purpose: what needs the extra. missing: those of its packages that are not installed. install: the command that
    installs them.
    """

    name: str
    purpose: str
    missing: tuple[str, ...]
    install: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that ``vaedeploy doctor`` shows. ``packages`` maps names to versions, or to None where one is not
    installed. ``bfloat16``: whether the CPU has instructions for it, which OpenVINO uses when asked to.
    """

    vaedeploy: str
    python: str
    platform: str
    cpu: str
    bfloat16: bool
    gpu: Gpu | None
    packages: dict[str, str | None]
    backends: tuple[BackendStatus, ...]
    extras: tuple[ExtraStatus, ...]
    warnings: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Examine this environment. Imports ONNX Runtime and OpenVINO where they are installed, and nothing else heavy."""
    from vaedeploy.runtime import openvino
    from vaedeploy.runtime.backends import BACKENDS, problem_of

    names = dict.fromkeys([*BASE, *(package for extra in EXTRAS.values() for package in extra)])
    return Diagnosis(
        vaedeploy=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_name(),
        bfloat16=openvino.has_bfloat16(),
        gpu=find_gpu(),
        packages={name: version_of(name) for name in names},
        backends=tuple(BackendStatus(name, problem_of(name)) for name in BACKENDS),
        extras=tuple(
            ExtraStatus(extra, PURPOSES[extra], missing_packages(modules), install_command(extra))
            for extra, modules in EXTRAS.items()
        ),
        warnings=_warnings(),
    )


def _onnxruntime_in_use() -> str:
    """Name and version of the ONNX Runtime package whose files were written last. The CUDA provider tells which of the
    two it is.
    """
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
