"""One half on the CPU that stays within a budget of memory: whole where that fits, else by rows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from vaedeploy.errors import BackendError, InputError
from vaedeploy.runtime.device import Array
from vaedeploy.runtime.failures import is_out_of_memory
from vaedeploy.runtime.rows.budget import Budget
from vaedeploy.runtime.rows.half import RowsHalf
from vaedeploy.runtime.rows.plan import Plan, untiled_bytes
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
    that does not fit raises InputError.
    """

    bytes: int
    way: Literal["untiled", "rows"]
    disk: int
    again: float
    least: int
    fits: bool


class Whole(Runner, Protocol):
    """What runs the whole graph.

    extra_bytes: how much more memory its runs take than those of ONNX Runtime, which plans are made for.
    """

    extra_bytes: int


class BoundedRunner:
    """The whole graph of a half, which runs by rows, on ONNX Runtime, where a call would take more memory than there
    is.

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
        """``Runner.run``, within the budget. Raises InputError for a budget that no plan fits."""
        if not self.half.exists:
            return self._whole.run(outputs, inputs, results, after)
        (array,) = inputs.values()
        batch, rows, columns = self.half.size(array)
        chosen: list[Plan | None] = []

        def choose(left: int, alone: bool) -> int | None:
            whole = self._untiled(batch, rows, columns)
            if whole <= left:
                chosen.append(None)
                return whole
            plan = self.half.plan(rows, columns, left)
            if plan.bytes > left and not alone:
                return None
            self._check(plan, left)
            chosen.append(plan)
            return plan.bytes

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
        """What a call takes that is the only one."""
        limit = self._budget.limit(self._kept)
        whole, (_, least) = self._untiled(batch, rows, columns), self.half.needs(batch, rows, columns)
        if whole <= limit:
            return MemoryPlan(whole, "untiled", 0, 0.0, least, fits=True)
        plan = self.half.plan(rows, columns, limit)
        return MemoryPlan(plan.bytes, "rows", plan.disk, plan.again, least, fits=plan.bytes <= limit)

    def _untiled(self, batch: int, rows: int, columns: int) -> int:
        return untiled_bytes(self.half.table, rows, columns, batch) + self._whole.extra_bytes

    def _check(self, plan: Plan, limit: int) -> None:
        if plan.bytes > limit and self._budget.most is not None:
            factor = self.half.table.factor
            size = f"{plan.layout.rows * factor}x{plan.layout.columns * factor}"
            raise InputError(
                f"max_memory is {self._budget.most:,} bytes, and the {self.half.part} takes at least {plan.bytes:,} "
                f"for an image of {size} (height x width). Give that many or more, or a smaller image"
            )

    def _log(self, plan: Plan, rows: int, columns: int) -> None:
        with self._lock:
            first, self._logged = not self._logged, True
        factor = self.half.table.factor
        log.log(
            logging.INFO if first else logging.DEBUG,
            "the %s of %dx%d runs by rows: %s MB at its peak%s, %.0f %% of it computed again",
            self.half.part,
            rows * factor,
            columns * factor,
            f"{plan.bytes / 1e6:,.0f}",
            f" and {plan.disk / 1e6:,.0f} MB in files" if plan.disk else "",
            100 * plan.again,
        )
