"""``Candidate``: one way to compute a bundle. ``Settings``: what the caller asks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vaedeploy.runtime import onnxruntime_cpu, openvino
from vaedeploy.runtime.rows.budget import Budget
from vaedeploy.runtime.runner import Runner
from vaedeploy.values.kinds import Part, Precision

HOST = (onnxruntime_cpu.NAME, openvino.NAME)
"""The backends that take arrays in host memory alone. The others run on a CUDA device."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to compute a bundle: a backend, in one precision.

    open: opens a half. engines: the files of its engines in the bundle; empty for a backend that runs graphs.
    warning: what is logged when a VAE first opens a half.
    Candidates are compared and hashed by identity, which is fast: every call looks one up.
    """

    backend: str
    precision: Precision
    open: Callable[[Part], Runner]
    engines: tuple[str, ...] = ()
    warning: str | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a CUDA device."""
        return self.backend not in HOST

    def takes(self, on_device: bool) -> bool:
        """Whether it takes arrays in device memory (``on_device``) or in host memory, which all backends take."""
        return not on_device or self.on_gpu


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a bundle shall be computed. ``VAE`` says what each means, and what None stands for.

    budget: the memory that calls on the host take; None for whatever they need.
    """

    backend: str | None = None
    precision: Precision | None = None
    device: int | str = 0
    threads: int | None = None
    provider_options: Mapping[str, str] | None = None
    profile: str | None = None
    verify_hashes: bool = True
    budget: Budget | None = None
    keep_memory: bool = False

    @property
    def cuda_device(self) -> int:
        """The number of the CUDA device; 0 where ``device`` is a name of OpenVINO's."""
        return self.device if isinstance(self.device, int) else 0

    @property
    def openvino_device(self) -> str:
        """OpenVINO's name of the device; the CPU where ``device`` is a number."""
        return self.device if isinstance(self.device, str) else openvino.CPU
