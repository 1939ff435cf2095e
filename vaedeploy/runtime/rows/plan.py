"""Chooses what a half stores between its pieces and what it computes again, to stay within some bytes of memory.

A cut that is not stored is *virtual*: whoever reads rows of it runs its piece for these rows, with the halo that they
need. Making a cut virtual saves its bytes and costs its operations once more. While a plan takes too much, the cut is
made virtual that lowers the excess most per operation that it costs.

Where there is a workspace, cuts may also be stored in files of it. That costs more than computing a little again, and
less than computing much again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vaedeploy.bundle.rows import RowsTable
from vaedeploy.runtime.rows.cost import (
    OVERHEAD,
    SCORES,
    best_height,
    file_bytes,
    least_work,
    operations,
    stored_bytes,
    work,
)
from vaedeploy.runtime.rows.layout import Layout
from vaedeploy.runtime.rows.store import GIVES_BACK

__all__ = ["Plan", "make_plan", "untiled_bytes"]

FILES = 0.25
"""Up to this share of the operations is computed again before cuts are stored in files."""

TOGETHER = 4
"""The most cuts that are made virtual at once where fewer save nothing, such as both of a residual block."""


@dataclass(frozen=True)
class Plan:
    """How one item is computed by rows.

    layout: with the cuts that are virtual. heights: of the strips of each turn, in the steps of its piece. bytes: at
    the peak, beside what the caller gives and gets. disk: bytes of files at the peak. again: operations that are
    computed again, as a share of all.
    """

    layout: Layout
    heights: tuple[int, ...]
    bytes: int
    disk: int
    again: float


def make_plan(
    table: RowsTable,
    rows: int,
    columns: int,
    budget: int,
    workspace: bool = False,
    gives_back: bool = GIVES_BACK,
) -> Plan:
    """The plan within ``budget`` bytes that takes the fewest operations found; where there is none, the one that takes
    the fewest bytes found. workspace: whether cuts may be stored in files. gives_back: see ``Arrays``.
    """
    layout = Layout(table, rows, columns, gives_back=gives_back)
    found = _within(layout, budget)
    if workspace and (found is None or operations(found) > (1 + FILES) * operations(layout)):
        on_disk = Layout(table, rows, columns, on_disk=True, gives_back=gives_back)
        found = on_disk if _peak(on_disk) <= budget else found
    if found is None:
        found = layout
        while (lower := _within(found, _peak(found) - 1)) is not None:
            found = lower
        if workspace:
            found = min(found, on_disk, key=_peak)
        budget = max(budget, _peak(found))
    return _finish(found, budget)


def _within(layout: Layout, budget: int) -> Layout | None:
    """``layout`` with cuts made virtual until it takes no more than ``budget`` bytes; None where that is not found."""
    while (excess := _excess(layout, budget)) > 0:
        cost = operations(layout)
        for count in range(1, TOGETHER + 1):
            tried = [(_excess(other, budget), other) for other in _more_virtual(layout, count)]
            better = [(left, other) for left, other in tried if left < excess]
            if better:
                break
        else:
            return None
        layout = max(better, key=lambda item: (excess - item[0]) / (operations(item[1]) - cost + 1))[1]
    return _fewer_virtual(layout, budget)


def _more_virtual(layout: Layout, count: int) -> Iterator[Layout]:
    """Each layout with ``count`` more virtual cuts, which follow each other.

    What is read whole is always stored, and so are what is given and what attention gives.
    """
    whole = {name for piece in layout.table.pieces for name in piece.whole}
    fixed = {layout.table.input, *layout.table.outputs, *whole, *layout.virtual}
    free = [
        cut.name
        for cut in layout.table.cuts
        if cut.axis is not None and cut.name not in fixed and not layout.piece_of[cut.name].quadratic
    ]
    for first in range(len(free) - count + 1):
        more = free[first : first + count]
        yield layout.with_virtual(layout.virtual.union(more))


def _fewer_virtual(layout: Layout, budget: int) -> Layout:
    """``layout`` with those virtual cuts stored again that turn out not to be needed, the dearest first."""
    for name in sorted(layout.virtual, key=lambda name: (-layout.piece_of[name].operations, name)):
        other = layout.with_virtual(layout.virtual - {name})
        if _excess(other, budget) == 0 and operations(other) <= operations(layout):
            layout = other
    return layout


def _needs(layout: Layout) -> Iterator[int]:
    """Bytes of each turn with the lowest strips."""
    for turn, stored in zip(layout.turns, stored_bytes(layout), strict=True):
        yield stored + least_work(layout, turn)


def _peak(layout: Layout) -> int:
    return max(_needs(layout))


def _excess(layout: Layout, budget: int) -> int:
    """Bytes beyond the budget, over all turns."""
    return sum(max(0, need - budget) for need in _needs(layout))


def _finish(layout: Layout, budget: int) -> Plan:
    turns = list(zip(layout.turns, stored_bytes(layout), strict=True))
    heights = [best_height(layout, turn, budget - stored) for turn, stored in turns]
    peak = max(stored + work(layout, turn, height) for (turn, stored), height in zip(turns, heights, strict=True))
    once = operations(layout.with_virtual(frozenset()))
    again = operations(layout, heights) / once - 1 if once else 0.0
    return Plan(layout, tuple(heights), peak, max(file_bytes(layout)), again)


def untiled_bytes(table: RowsTable, rows: int, columns: int, batch: int) -> int:
    """Bytes that the whole graph takes at its peak, beside what the caller gives and gets."""
    attention = any(piece.quadratic for piece in table.pieces)
    scores = min(SCORES, 8 * batch * (rows * columns) ** 2) if attention else 0
    return OVERHEAD + math.ceil(1.2 * table.untiled) * rows * columns * batch + scores
