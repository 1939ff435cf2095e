"""Plans: within the budget wherever any set of virtual cuts is, and not much dearer than the cheapest."""

from __future__ import annotations

from functools import cache
from itertools import chain, combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_pieces import Network, table_of

from vaedeploy.bundle.rows import RowsTable
from vaedeploy.runtime.rows.cost import OVERHEAD, least_height, operations, stored_bytes, work
from vaedeploy.runtime.rows.layout import Layout
from vaedeploy.runtime.rows.plan import make_plan

SIZE = 96, 64


@cache
def table() -> RowsTable:
    """A decoder of two scales, with nine cuts that may be virtual."""
    net = Network().conv(16).block(16).up().conv(8).block(8).up().conv(4).block(4)
    with TemporaryDirectory() as folder:
        return table_of(Path(folder), net.graph(4))


@cache
def every_layout() -> list[tuple[int, float]]:
    """(bytes with the lowest strips, operations) for each set of virtual cuts."""
    known = table()
    fixed = {known.input, *known.outputs, *(name for piece in known.pieces for name in piece.whole)}
    names = [cut.name for cut in known.cuts if cut.axis is not None and cut.name not in fixed]
    assert 6 <= len(names) <= 12
    sets = chain.from_iterable(combinations(names, count) for count in range(len(names) + 1))
    layouts = [Layout(known, *SIZE, frozenset(virtual)) for virtual in sets]
    return [(peak(layout), operations(layout)) for layout in layouts]


def peak(layout: Layout) -> int:
    works = [work(layout, turn, least_height(layout, turn.piece)) for turn in layout.turns]
    return max(map(sum, zip(stored_bytes(layout), works, strict=True)))


@given(st.floats(0.0, 1.2))
def test_a_plan_is_nearly_the_best_that_there_is(share: float) -> None:
    least, most = min(every_layout())[0], every_layout()[0][0]
    budget = least + int((most - least) * share)
    plan = make_plan(table(), *SIZE, budget)
    cheapest = min(cost for size, cost in every_layout() if size <= budget)
    assert plan.bytes <= budget
    assert operations(plan.layout) <= 1.3 * cheapest
    assert peak(plan.layout) <= plan.bytes


def test_the_least_plan_takes_the_fewest_bytes_that_there_are() -> None:
    assert make_plan(table(), *SIZE, 0).bytes == min(every_layout())[0]


def test_more_memory_never_costs_more_operations() -> None:
    least, most = min(every_layout())[0], every_layout()[0][0]
    budgets = [least + (most - least) * i // 20 for i in range(22)]
    costs = [operations(make_plan(table(), *SIZE, budget).layout) for budget in budgets]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]


def test_without_a_limit_everything_is_stored_and_little_is_computed_again() -> None:
    plan = make_plan(table(), 512, 512, 1 << 40)
    assert not plan.layout.virtual
    assert plan.again < 0.08
    assert plan.bytes > OVERHEAD


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (1 << 20, 1 << 20)])
def test_any_size_has_a_plan(size: tuple[int, int]) -> None:
    plan = make_plan(table(), *size, 1 << 30)
    assert all(1 <= h <= plan.layout.all_steps(t.piece) for h, t in zip(plan.heights, plan.layout.turns, strict=True))
