"""One half on the CPU that stays within a budget of memory: whole where that fits, else by rows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from vaedeploy.errors import BackendError, MemoryLimitError
from vaedeploy.runtime.device import Array
from vaedeploy.runtime.failures import is_out_of_memory
from vaedeploy.runtime.rows.budget import Budget
from vaedeploy.runtime.rows.half import RowsHalf
from vaedeploy.runtime.rows.plan import Plan
from vaedeploy.runtime.runner import Runner

__all__ = ["BoundedRunner", "MemoryPlan", "Whole"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryPlan:
    """What a call takes.

    bytes: at its peak, beyond the open VAE and the arrays that the caller gives and gets. way: "untiled" for the whole
    graph at once, "rows" for strips of it. disk: bytes of files in the VAE's workspace at the peak.
    again: operations that are computed again, as a share of all.
    least: the fewest bytes that a call of this size can take. fits: whether the VAE's ``max_memory`` allows it; a call
    that does not fit raises MemoryLimitError.
    """

    bytes: int
    way: Literal["untiled", "rows"]
    disk: int
    again: float
    least: int
    fits: bool


class Whole(Runner, Protocol):
    """What runs the whole graph.

    extra_bytes: how much more memory its runs take than ONNX Runtime's, for which plans are made.
    """

    extra_bytes: int


class BoundedRunner:
    """The whole graph of a half. A call that would take more memory than there is runs by rows, on ONNX Runtime.

    keep_memory: whether ``whole`` keeps the memory of its runs.
    """

    def __init__(self, half: RowsHalf, budget: Budget, whole: Whole, keep_memory: bool = False) -> None:
        self.half, self._budget, self._whole, self._keep_memory = half, budget, whole, keep_memory
        self._kept = 0
        self.graph, self.inputs, self.outputs = whole.graph, whole.inputs, whole.outputs
        self._logged = False
        self._lock = threading.Lock()

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, Array] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Any]:
        """``Runner.run``, within the budget. Raises MemoryLimitError for a budget that no plan fits."""
        if not self.half.exists:
            self._warn_of_no_limit()
            return self._whole.run(outputs, inputs, results, after)
        (array,) = inputs.values()
        batch, rows, columns = self.half.size(array)
        chosen: list[Plan | None] = []

        def choose(left: int, alone: bool) -> int | None:
            needed, plan = self._choose(batch, rows, columns, left)
            if needed > left and not alone:
                return None
            self._check(needed, left, rows, columns)
            chosen.append(plan)
            return needed

        with self._budget.take(choose, self._kept):
            plan = chosen[-1]
            if plan is None:
                try:
                    computed = self._whole.run(outputs, inputs, results, after)
                    if self._keep_memory:
                        self._kept = max(self._kept, self._untiled(batch, rows, columns))
                    return computed
                except BackendError as error:
                    if not is_out_of_memory(error.__cause__):
                        raise
                    plan = self.half.plan(rows, columns, 0)
                    log.warning("%s: %s. It is computed by rows instead", self.graph, str(error))
            self._log(plan, rows, columns)
            return self.half.run(plan, outputs, array, results)

    def plan(self, batch: int, rows: int, columns: int) -> MemoryPlan:
        """What a call takes if it is the only one."""
        limit = self._budget.limit(self._kept)
        least, _ = self._choose(batch, rows, columns, 0)
        needed, plan = self._choose(batch, rows, columns, limit)
        if plan is None:
            return MemoryPlan(needed, "untiled", 0, 0.0, least, fits=needed <= limit)
        return MemoryPlan(needed, "rows", plan.disk, plan.again, least, fits=needed <= limit)

    def _choose(self, batch: int, rows: int, columns: int, left: int) -> tuple[int, Plan | None]:
        """The bytes that a call takes where ``left`` are left, or the fewest that it can take, and its plan. Without a
        plan the whole graph runs: rows save nothing for an image that is small, or one row high.
        """
        whole = self._untiled(batch, rows, columns)
        if whole <= left:
            return whole, None
        by_rows, plan = self.half.by_rows(batch, rows, columns, left)
        return (by_rows, plan) if by_rows < whole else (whole, None)

    def _untiled(self, batch: int, rows: int, columns: int) -> int:
        return self.half.untiled(batch, rows, columns) + self._whole.extra_bytes

    def _check(self, needed: int, limit: int, rows: int, columns: int) -> None:
        if needed > limit and self._budget.most is not None:
            factor = self.half.table.factor
            raise MemoryLimitError(
                f"max_memory is {self._budget.most:,} bytes, and the {self.half.part} takes at least {needed:,} "
                f"for an image of {rows * factor}x{columns * factor} (height x width). Give that many or more, or a "
                "smaller image"
            )

    def _is_first(self) -> bool:
        """True at the first call alone: what every call could log is logged once."""
        with self._lock:
            first, self._logged = not self._logged, True
        return first

    def _warn_of_no_limit(self) -> None:
        if self._budget.most is not None and self._is_first():
            log.warning("calls may take more than max_memory: %s", self.half.missing)

    def _log(self, plan: Plan, rows: int, columns: int) -> None:
        factor = self.half.table.factor
        log.log(
            logging.INFO if self._is_first() else logging.DEBUG,
            "the %s of %dx%d runs by rows: %s MB at its peak%s, %.0f %% of it computed again",
            self.half.part,
            rows * factor,
            columns * factor,
            f"{plan.bytes / 1e6:,.0f}",
            f" and {plan.disk / 1e6:,.0f} MB in files" if plan.disk else "",
            100 * plan.again,
        )
