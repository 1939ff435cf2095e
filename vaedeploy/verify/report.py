"""The result of a verification, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from vaedeploy.bundle.manifest import Verification
from vaedeploy.system.gpu import Gpu
from vaedeploy.values.kinds import Precision
from vaedeploy.values.shapes import size_text
from vaedeploy.verify.limits import Limit
from vaedeploy.verify.traces import Bisection

FORMAT = 1
"""The version of the JSON that ``to_document`` gives. Older reports, without a version, have no ``format``."""


class Case(msgspec.Struct, frozen=True):
    """How far one output is from the reference, at one shape.

    part: ``encoder`` or ``decoder``, each on the reference's input, or ``round trip`` (image -> latent -> image).
    name: the golden case's. output: the graph's output that was compared. form: the form of the graph, or the profile
        and backend, that ran.
    batch, height, width: items, and pixels of the image.
    max_abs, mean_abs: the largest and the mean absolute error, in the output's own units (an image spans 2).
    rel_l2: norm of the error over norm of the reference.
    psnr: dB, of 8-bit pixels; None where there are no pixels or none differs. pixels_off, within_one_level: shares (0
    to 1) of 8-bit values that differ at all, and that differ by at most one
        level.
    max_levels: the largest difference of an 8-bit value, in levels.
    failures: a sentence for each limit that was missed.
    findings: faults that a person would see beside the reference's image, a sentence each. They do not make a case
        fail: the limits are stricter, and give their reasons. None where the image was not looked at.
    precision: the precision whose limits apply.
    seconds: how long the output took, including the loading of a graph that was not loaded yet. Outputs of one call
        share its time equally. None in older reports, which did not measure it.
    """

    part: Literal["encoder", "decoder", "round trip"]
    name: str
    output: str
    form: str
    batch: int
    height: int
    width: int
    max_abs: float
    mean_abs: float
    rel_l2: float
    psnr: float | None = None
    pixels_off: float | None = None
    within_one_level: float | None = None
    max_levels: int | None = None
    failures: tuple[str, ...] = ()
    findings: tuple[str, ...] | None = None
    precision: Precision = "fp32"
    seconds: float | None = None

    @property
    def passed(self) -> bool:
        """Whether no limit was missed."""
        return not self.failures

    @property
    def size(self) -> str:
        """Batch, height and width, such as ``1x512x768``."""
        return size_text(self.batch, self.height, self.width)


class Subject(msgspec.Struct, frozen=True):
    """The VAE that a report is about: its name, and its identity, see ``VaeInfo``."""

    name: str
    identity: str


class Machine(msgspec.Struct, frozen=True):
    """Where outputs were computed.

    cpu: the CPU's own name. gpu: the GPU that computed them; None where the CPU did. cuda: the newest version of CUDA
    that the GPU's driver supports, such as "13.0".
    """

    cpu: str
    gpu: Gpu | None
    cuda: str | None


class Report(msgspec.Struct, frozen=True):
    """The result of a verification: the verdict on a bundle, and the cases that it follows from.

    precision: that of the bundle's graphs, or of the engine. reference: what computed the reference outputs, in words.
    backend: the backend whose outputs were compared.

    What ``record.record`` adds:

    bundle: the VAE that the bundle holds. versions: package -> its version, for those that are installed. machine:
    where it ran. date: when it ended, in UTC, such as "2026-11-26T12:00:00Z". limits: precision -> the limits that its
    cases had to keep. pace: the backend's time for a decode over ONNX Runtime's on the same CPU, see ``pipeline.pace``;
    None where they were not timed.

    bisection: where the graphs that failed go wrong, as ``bisect_bundle`` found it for the page; None where no page was
    asked for, nothing failed, or it could not be found. Reports without it have no such field in JSON.
    """

    precision: Precision
    reference: str
    backend: str
    cases: tuple[Case, ...]
    bundle: Subject | None = None
    versions: Mapping[str, str] = {}
    machine: Machine | None = None
    date: str | None = None
    limits: Mapping[Precision, tuple[Limit, ...]] = {}
    pace: float | None = None
    bisection: Bisection | None = None

    @property
    def seconds(self) -> float:
        """How long the outputs took together, without the work between them."""
        return math.fsum(case.seconds or 0.0 for case in self.cases)

    @property
    def passed(self) -> bool:
        """The verdict: whether there are cases and all passed."""
        return bool(self.cases) and all(case.passed for case in self.cases)

    @property
    def worst(self) -> dict[str, float]:
        """The worst value of each metric over all cases; NaN where any value is NaN."""
        names = ("max_abs", "rel_l2", "max_levels", "pixels_off")
        upper = {name: float(np.max(_present(self.cases, name), initial=0.0)) for name in names}
        return upper | {"psnr": float(np.min(_present(self.cases, "psnr"), initial=math.inf))}

    def to_document(self) -> dict[str, Any]:
        """The report with its verdict, as dicts, lists, strings and numbers."""
        document: dict[str, Any] = {"format": FORMAT, "passed": self.passed} | msgspec.to_builtins(self)
        for built, case in zip(document["cases"], self.cases, strict=True):
            built["passed"] = case.passed
        if self.bisection is None:
            del document["bisection"]
        return document

    def to_json(self) -> bytes:
        """The report with its verdict, as one JSON document."""
        return msgspec.json.format(msgspec.json.encode(self.to_document()), indent=2)


def summary(report: Report) -> Verification:
    """The part of a report that a bundle's manifest keeps."""
    return Verification(report.passed, report.reference, report.backend, report.worst, len(report.cases))


def _present(cases: Sequence[Case], name: str) -> list[float]:
    """The values of one metric in all cases that have it."""
    return [value for case in cases if (value := getattr(case, name)) is not None]
