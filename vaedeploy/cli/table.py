"""Tables on stdout: as wide as the terminal, or with one line for each row if another program reads them."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from vaedeploy.cli import terminal
from vaedeploy.system.text import printable


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Write a table to stdout.

    headers: the names of the columns; empty for a table without a header. numbers: the names of the columns that are
        aligned to the right.

    On a terminal, cells wrap between words. If it is too narrow for the columns' longest words, each row is a
    paragraph.
    """
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    # Other programs read a pipe by lines, so a row must stay one line there.
    width = terminal.width_of(sys.stdout) if on_terminal else 10_000
    rows = [[printable(cell) for cell in row] for row in rows]
    lines: Iterable[str]
    if headers and sum(_least_widths(headers, rows)) + 2 * len(headers) > width:
        lines = _paragraphs(headers, rows, width)
    else:
        lines = _table(headers, rows, numbers, width, on_terminal)
    for line in lines:
        terminal.write(line.rstrip())


def _least_widths(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The length of each column's longest word, in characters: a narrower column would cut it."""
    columns = zip(*([headers] if headers else []), *rows, strict=True)
    return [max((len(word) for cell in column for word in cell.split()), default=0) for column in columns]


def _widths(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The widths of columns that have ``width`` together: each fits its longest word, and the rest goes to those that
    would wrap. rich would give the last ones less than they need.
    """
    widths = _least_widths(headers, rows)
    columns = zip(headers, *rows, strict=True)
    wanted = [max(len(line) for cell in column for line in [*cell.splitlines(), ""]) for column in columns]
    spare = width - sum(widths) - 2 * (len(widths) - 1)
    while spare > 0 and (narrow := [index for index, full in enumerate(wanted) if widths[index] < full]):
        for index in narrow[:spare]:
            widths[index] += 1
        spare -= len(narrow)
    return widths


def _paragraphs(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """The lines of a table whose rows are paragraphs.

    The first cell of a row is a name that people type again, so it has a line of its own and is never cut.
    """
    for name, *cells in rows:
        details = "; ".join(f"{header}: {cell}" for header, cell in zip(headers[1:], cells, strict=True) if cell)
        yield name
        yield from textwrap.wrap(details, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str], width: int, styled: bool
) -> list[str]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(headers))
    if headers:
        for header, columns in zip(headers, _widths(headers, rows, width), strict=True):
            table.add_column(header, justify="right" if header in numbers else "left", width=columns)
    else:
        for index in range(len(rows[0])):
            table.add_column(no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=terminal.COLORS.get(cell, "")) for cell in row))
    text_of_table = io.StringIO()
    console = Console(
        file=text_of_table, highlight=False, width=width, force_terminal=styled, no_color=not terminal.has_colors()
    )
    console.print(table)
    return text_of_table.getvalue().splitlines()
