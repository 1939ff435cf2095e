"""Rows of text for the result of ``optimize``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from vaedeploy.pipeline.optimize import Optimized
from vaedeploy.rewrite import Outcome
from vaedeploy.values.words import counted

Row = tuple[str, ...]

Table = tuple[Row, list[Row], Row]

RULE_COLUMNS = ("rule", "matches", "left alone", "why")

DIFFERENCE_COLUMNS = ("output", "relative L2")

MOST_REASONS = 6
"""The most rows for one rule's reasons, of which there can be one for each tensor. ``--json`` has them all."""


def tables(optimized: Optimized) -> list[Table]:
    """The tables of rules, of figures and, if both graphs were compared, of differences.

    Each is (headers, rows, headers of the columns that are numbers), as ``terminal.show_table`` takes them.
    """
    sizes = ", ".join(f"{name}={size}" for name, size in optimized.sizes.items())
    figures = (f"at {sizes}" if sizes else "", "before", "after", "change")
    result: list[Table] = [
        (RULE_COLUMNS, rule_rows(optimized.outcomes), RULE_COLUMNS[1:3]),
        (figures, figure_rows(optimized), figures[1:]),
    ]
    if optimized.differences:
        result.append((DIFFERENCE_COLUMNS, difference_rows(optimized), DIFFERENCE_COLUMNS[1:]))
    return result


def rule_rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """A row for each rule, with its most frequent reason to leave a place alone, then a row for each other reason."""
    rows: list[Row] = []
    for outcome in outcomes:
        reasons = Counter(refusal.reason for refusal in outcome.refusals).most_common()
        shown = [(str(count), reason) for reason, count in reasons[:MOST_REASONS]] or [("", "")]
        if rest := sum(count for _, count in reasons[MOST_REASONS:]):
            shown.append((str(rest), "for other reasons; --json has them all"))
        rows += [
            (outcome.rule, str(outcome.matches), *shown[0]),
            *(("", "", count, reason) for count, reason in shown[1:]),
        ]
    return rows


def figure_rows(optimized: Optimized) -> list[Row]:
    """Operations (10^9) and weights (MB) before and after, and the relative change."""
    before, after = optimized.before, optimized.after
    rows = [
        _figure_row("GFLOP", before.operations / 1e9, after.operations / 1e9),
        _figure_row("of them convolutions", before.convolutions / 1e9, after.convolutions / 1e9),
        _figure_row("weights, MB", before.weight_bytes / 1e6, after.weight_bytes / 1e6),
    ]
    if before.uncounted or after.uncounted:
        rows.append(("nodes not counted", *(str(len(figures.uncounted)) for figures in (before, after)), ""))
    return rows


def _figure_row(name: str, before: float, after: float) -> Row:
    change = f"{after / before - 1:+.1%}" if before else ""
    return (name, f"{before:,.3f}", f"{after:,.3f}", change)


def difference_rows(optimized: Optimized) -> list[Row]:
    """A row for each output, in ``DIFFERENCE_COLUMNS``."""
    return [(difference.output, f"{difference.relative_l2:.2e}") for difference in optimized.differences]


def closing_lines(optimized: Optimized) -> list[str]:
    """Which weights lost numbers, what the graphs were compared on or why they were not, and where the result is."""
    lines = []
    if optimized.underflows:
        zeros, small, size = (sum(getattr(u, k) for u in optimized.underflows) for k in ("zeros", "subnormals", "size"))
        lines.append(
            f"Too small for {optimized.precision}: {zeros:,} numbers of the weights became zero and {small:,} lost "
            f"digits, of {size:,} in {counted(len(optimized.underflows), 'tensor')}"
        )
    if optimized.not_compared:
        lines.append(f"Not compared: {optimized.not_compared}")
    else:
        lines.append(f"Compared on {optimized.compared_on}")
    return [*lines, f"Wrote {optimized.out} ({optimized.precision}, for {optimized.target})"]
