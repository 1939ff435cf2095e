"""What a verification found, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from vaedeploy.bundle.manifest import Verification
from vaedeploy.values.kinds import Precision
from vaedeploy.values.shapes import size_text


class Case(msgspec.Struct, frozen=True):
    """One output at one shape, and how far it is from the reference.

    part: ``encoder`` and ``decoder`` by themselves, or ``round trip`` (image -> latent -> image).
    name: the case's name; output: the graph's output that was compared; form: which form of the graph ran.
    batch, height, width: items, and pixels.
    max_abs, mean_abs: absolute error, in the output's own units (an image spans 2).
    rel_l2: norm of the error over norm of the reference.
    psnr: dB, of 8-bit pixels; None where there are no pixels or not one differs.
    pixels_off, within_one_level: shares (0 to 1) of 8-bit values that differ at all, and by no more than one level.
    max_levels: the largest difference of an 8-bit value.
    failures: a sentence for each limit that was missed.
    findings: what a person would see beside the reference's picture, a sentence each. They fail nothing by themselves:
        the limits are stricter, and say why. None where the output was not looked at.
    precision: whose limits it had to keep.
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

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def size(self) -> str:
        """Batch, height and width, such as ``1x512x768``."""
        return size_text(self.batch, self.height, self.width)


class Report(msgspec.Struct, frozen=True):
    """The verdict on a bundle, and what it was made from.

    reference: where the outputs that were compared with came from. backend: who computed the others.
    """

    precision: Precision
    reference: str
    backend: str
    cases: tuple[Case, ...]

    @property
    def passed(self) -> bool:
        return bool(self.cases) and all(case.passed for case in self.cases)

    @property
    def worst(self) -> dict[str, float]:
        """Each metric's worst value over all cases; NaN where one is."""
        names = ("max_abs", "rel_l2", "max_levels", "pixels_off")
        upper = {name: float(np.max(_present(self.cases, name), initial=0.0)) for name in names}
        return upper | {"psnr": float(np.min(_present(self.cases, "psnr"), initial=math.inf))}

    def to_document(self) -> dict[str, Any]:
        """The report with its verdict, in builtins."""
        document: dict[str, Any] = {"passed": self.passed} | msgspec.to_builtins(self)
        for built, case in zip(document["cases"], self.cases, strict=True):
            built["passed"] = case.passed
        return document

    def to_json(self) -> bytes:
        """One JSON document: the report with its verdict."""
        return msgspec.json.format(msgspec.json.encode(self.to_document()), indent=2)


def summary(report: Report) -> Verification:
    """What a manifest keeps of a report."""
    return Verification(report.passed, report.reference, report.backend, report.worst, len(report.cases))


def _present(cases: Sequence[Case], name: str) -> list[float]:
    return [value for case in cases if (value := getattr(case, name)) is not None]
