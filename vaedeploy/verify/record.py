"""Cases -> Report, with what one wants to know of a verdict later: of which bundle, by what, where and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from vaedeploy.bundle import Manifest
from vaedeploy.runtime.candidate import HOST
from vaedeploy.system.gpu import driver_version, find_gpu
from vaedeploy.system.installs import version_of
from vaedeploy.system.machine import cpu_name
from vaedeploy.values.kinds import Precision
from vaedeploy.verify.limits import LIMITS, Limit
from vaedeploy.verify.report import Case, Machine, Report, Subject
from vaedeploy.version import __version__

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "tensorrt", "tensorrt-rtx")
"""The packages whose versions a report has, if they are installed."""


def record(
    manifest: Manifest,
    precision: Precision,
    reference: str,
    backend: str,
    cases: Sequence[Case],
    *,
    limits: Mapping[Precision, Sequence[Limit]] = LIMITS,
    device: int = 0,
) -> Report:
    """The report of ``cases`` that were run now, on this machine.

    manifest: the bundle's. precision, reference, backend: see ``Report``. limits: each precision's, by which the cases
    were judged. device: the number of the CUDA device, where ``backend`` runs on a GPU.
    """
    # The driver is asked only if it was used: a process that has begun to use CUDA cannot be forked.
    gpu = None if backend in HOST else find_gpu(device)
    versions = {name: version for name in PACKAGES if (version := version_of(name)) is not None}
    return Report(
        precision,
        reference,
        backend,
        tuple(cases),
        bundle=Subject(manifest.vae.name, manifest.vae.identity),
        versions={"vaedeploy": __version__, **versions},
        machine=Machine(cpu_name(), gpu, driver_version() if gpu else None),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        limits={kind: tuple(limits[kind]) for kind in dict.fromkeys(case.precision for case in cases)},
    )
