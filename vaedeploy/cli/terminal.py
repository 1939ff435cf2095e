"""What the command line shows: results on stdout, everything else on stderr, and each kind in one place.

What takes long to import is imported where it is used, so that ``--help`` and usage errors do not wait for them.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import click

from vaedeploy.errors import OutputError, VaedeployError
from vaedeploy.system.progress import Progress

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


def run(command: click.Command, arguments: Sequence[str] | None) -> int:
    """Run a command line and return its exit code. Every error that is expected is told here, and nowhere else.

    A reader that has gone, such as ``head`` after its lines, changes nothing of the code: what is left is not shown.
    """
    stdout = sys.stdout
    try:
        result = command.main(arguments, prog_name="vaedeploy", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SystemExit:
        if sys.stdout is stdout:
            raise
        _silence(stdout)  # click met a reader of --help that has gone, and has wrapped it
        return 0
    except click.Abort:
        say("Interrupted; nothing half-written was left behind")
        return INTERRUPTED
    except VaedeployError as error:
        logging.getLogger("vaedeploy").debug("where it was raised", exc_info=error)
        say(f"Error: {error}")
        return error.exit_code
    except ModuleNotFoundError as error:
        from vaedeploy.system.installs import advice_for

        given = sys.argv[1:] if arguments is None else arguments
        advice = advice_for(error.name or "", next((word for word in given if not word.startswith("-")), None))
        if advice is None:
            raise
        say(f"Error: {advice}")
        return VaedeployError.exit_code
    return result if isinstance(result, int) else 0


def say(message: str) -> None:
    """A line for people, on stderr."""
    try:
        click.echo(message, err=True)
    except BrokenPipeError:
        _silence(sys.stderr)


def show(line: str) -> None:
    """A line of the result, on stdout. Raises OutputError where that cannot be written to, such as a file on a full
    disk; see ``run`` for a reader that has gone.
    """
    if sys.stdout is None:  # it was closed before Python began
        raise OutputError("cannot write the result to stdout: it is closed")
    try:
        click.echo(line)
    except BrokenPipeError:
        _silence(sys.stdout)
    except OSError as error:
        _silence(sys.stdout)
        raise OutputError(f"cannot write the result to stdout: {error.strerror}") from error


def _silence(stream: TextIO) -> None:
    """Show no more on ``stream``: what is left in its buffer would fail again when Python ends, with a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show_json(value: object) -> None:
    """``value`` (builtins, dataclasses, msgspec Structs) as a JSON document on stdout. Infinity and NaN become null."""
    import msgspec

    show(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """A table on stdout; columns named in ``numbers`` are aligned to the right. Lines wrap on a terminal only, between
    words; one that is too narrow for that gets a paragraph a row.

    headers: the columns' names; none for a table without.
    """
    terminal = sys.stdout is not None and sys.stdout.isatty()
    # A pipe has no width, so nothing is wrapped there: rows are what other programs read.
    width = shutil.get_terminal_size().columns if terminal else 10_000
    lines: Iterable[str]
    if headers and sum(_words(headers, rows)) + 2 * len(headers) > width:
        lines = _paragraphs(headers, rows, width)
    else:
        lines = _table(headers, rows, numbers, width, terminal)
    for line in lines:
        show(line.rstrip())


def _words(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The length of each column's longest word."""
    columns = zip(*([headers] if headers else []), *rows, strict=True)
    return [max((len(word) for cell in column for word in cell.split()), default=0) for column in columns]


def _paragraphs(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """The first column has names, which are to be typed again: they are never cut."""
    for name, *cells in rows:
        told = "; ".join(f"{header}: {cell}" for header, cell in zip(headers[1:], cells, strict=True) if cell)
        yield name
        yield from textwrap.wrap(told, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str], width: int, styled: bool
) -> list[str]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(headers))
    if headers:
        for header, least in zip(headers, _words(headers, rows), strict=True):
            table.add_column(header, justify="right" if header in numbers else "left", min_width=least)
    else:
        for place in range(len(rows[0])):
            table.add_column(no_wrap=place == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    text_of_table = io.StringIO()
    Console(file=text_of_table, highlight=False, width=width, force_terminal=styled).print(table)
    return text_of_table.getvalue().splitlines()


def configure(verbose: bool) -> None:
    """Send vaedeploy's warnings and logs to stderr, a line each; with ``verbose``, everybody's."""

    def show_warning(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
        if verbose or category.__module__.startswith("vaedeploy"):
            say(f"Warning: {message}")

    if not verbose:
        # The hub's client has a handler of its own, which prints each retry. It reads this when it is imported.
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, handlers=[_LogLines()], force=True)
    logging.getLogger("vaedeploy").setLevel(logging.DEBUG if verbose else logging.WARNING)
    warnings.showwarning = show_warning


class _LogLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        trace = "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip() if record.exc_info else ""
        say(f"{record.levelname.capitalize()}: {record.getMessage()}{trace}")


@contextmanager
def progress_display() -> Iterator[Progress]:
    """A Progress that draws bars on a terminal, and elsewhere writes a line where a step starts and where it ends."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    console = Console(file=sys.stderr)  # which is named, since tracing holds sys.stderr for a while
    console.width -= len("^C")  # a terminal shows that on Ctrl-C; on a full line it would push the bars up by one
    # stdout is left alone: it carries results.
    with Bars(*columns, TimeElapsedColumn(), console=console, redirect_stdout=False) as bars:
        tasks: dict[str, TaskID] = {}

        def draw(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(escape(what), total=total)
            bars.update(tasks[what], completed=done, total=total)
            if done >= total:
                del tasks[what]

        yield draw


def _lines() -> Progress:
    started: dict[str, float] = {}

    def write(what: str, done: float, total: float) -> None:
        if what not in started and done >= total:  # nothing was to be done
            say(what)
            return
        if what not in started:
            started[what] = time.monotonic()
            say(f"{what} ...")
        if done >= total:
            say(f"{what}: done in {time.monotonic() - started.pop(what):.1f} s")

    return write
