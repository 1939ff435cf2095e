"""A report in a few sentences: for each half and form of graph, whether its cases passed, and the cause if not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vaedeploy.values.words import counted
from vaedeploy.verify.report import Case, Report
from vaedeploy.verify.traces import Bisection
from vaedeploy.verify.words import amount, name_of

__all__ = ["Verdict", "find_verdicts"]

WORST = ("rel_l2", "max_levels")
"""The metrics whose worst values are given for cases that passed."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on the cases of one part and form.

    part, form: as in ``Case``. cases: theirs, in the report's order. words: if all passed, how many there are and their
    worst figures; if not, the cause, and in how many cases.
    """

    part: str
    form: str
    cases: tuple[Case, ...]
    words: str

    @property
    def passed(self) -> bool:
        return all(case.passed for case in self.cases)

    @property
    def name(self) -> str:
        """Part and form, such as ``decoder, portable``."""
        return f"{self.part}, {self.form}" if self.form else self.part

    @property
    def sentence(self) -> str:
        """Such as ``decoder, onnxruntime, emulated fp16: NaN in 11 of 11 cases, first at decoder.up_blocks.3``."""
        return f"{self.name}: {self.words}"


def find_verdicts(report: Report) -> tuple[Verdict, ...]:
    """A verdict for each part and form, in the report's order, with the module at which its bisection found a fault."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in report.cases:
        groups.setdefault((case.part, case.form), []).append(case)
    return tuple(
        Verdict(part, form, tuple(cases), _words(cases) + _first(part, form, cases, report.bisection))
        for (part, form), cases in groups.items()
    )


def _words(cases: Sequence[Case]) -> str:
    failed = [case for case in cases if not case.passed]
    if not failed:
        worst = {metric: [getattr(c, metric) for c in cases if getattr(c, metric) is not None] for metric in WORST}
        told = [f"{name_of(m)} {amount(m, max(values))}" for m, values in worst.items() if values]
        return f"{counted(len(cases), 'case')}; at worst: {', '.join(told)}"
    broken = [case for case in failed if not math.isfinite(case.rel_l2)]
    if broken:
        what = "NaN" if any(math.isnan(case.rel_l2) for case in broken) else "infinity"
        return f"{what} in {len(broken)} of {counted(len(cases), 'case')}"
    worst_case = failed[int(np.argmax([case.rel_l2 for case in failed]))]
    where = f"{worst_case.output}, {worst_case.size}"
    return f"{worst_case.failures[0]} ({where}, the worst of {len(failed)} of {counted(len(cases), 'case')})"


def _first(part: str, form: str, cases: Sequence[Case], bisection: Bisection | None) -> str:
    """Where a bisection found the fault of cases that failed first, or nothing."""
    if bisection is None or all(case.passed for case in cases):
        return ""
    for trace in bisection.traces:
        # The form of an emulated case is "FORM, emulated PRECISION".
        if (trace.part, trace.form) == (part, form.split(",")[0]) and trace.jumps:
            return f", first at {trace.jumps[0].module or trace.jumps[0].tensor}"
    return ""
