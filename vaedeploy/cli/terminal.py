"""All output of the command line: results on stdout; progress, warnings and errors on stderr.

Packages that take long to import are imported inside functions, so that ``--help`` and usage errors do not wait for
them.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import signal
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

import click

from vaedeploy.errors import OutputError, VaedeployError
from vaedeploy.system.interrupts import SIGNALLED, Stopped, remembering, stop_if_interrupted
from vaedeploy.system.progress import Progress
from vaedeploy.system.text import encodable, printable


def run(command: click.Command, arguments: Sequence[str] | None) -> int:
    """Run a command line and return its exit code. Every expected error is reported here, and nowhere else.

    If the reader of a pipe stops early, as ``head`` does, the rest of the output is dropped, and the code is the same.
    """
    stdout = sys.stdout
    try:
        with remembering():
            result = command.main(arguments, prog_name="vaedeploy", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SystemExit:
        if sys.stdout is stdout:
            raise
        _silence(stdout)  # the reader of --help has gone: click wraps stdout then, and exits
        return 0
    except click.Abort as error:
        number = error.__cause__.number if isinstance(error.__cause__, Stopped) else signal.SIGINT
        what = "Interrupted" if number == signal.SIGINT else f"Stopped by {signal.Signals(number).name}"
        say(f"{what}; nothing half-written was left behind")
        return SIGNALLED + number
    except VaedeployError as error:
        logging.getLogger("vaedeploy").debug("where it was raised", exc_info=error)
        say(f"Error: {error}")
        return error.exit_code
    except ModuleNotFoundError as error:
        from vaedeploy.system.installs import advice_for

        words = sys.argv[1:] if arguments is None else arguments
        advice = advice_for(error.name or "", next((word for word in words if not word.startswith("-")), None))
        if advice is None:
            raise
        say(f"Error: {advice}")
        return VaedeployError.exit_code
    return result if isinstance(result, int) else 0


def leave(code: int) -> NoReturn:
    """End the process with an exit code of ``run``.

    After a signal, it ends at once: everything is closed by then, but Python would go on to free what PyTorch holds,
    object by object, which has taken most of a minute on a busy machine. Whoever sent the signal kills sooner.
    """
    if code > SIGNALLED:
        for stream in (sys.stdout, sys.stderr):
            with suppress(
                OSError, ValueError, AttributeError
            ):  # its reader has gone, or it is closed, or there is none
                stream.flush()
        os._exit(code)
    sys.exit(code)


def say(message: str) -> None:
    """Write a line for people to stderr. What a terminal would obey, such as an escape, is shown and not sent."""
    try:
        click.echo(printable(message), err=True)
    except BrokenPipeError:
        _silence(sys.stderr)


def show(line: str) -> None:
    """Write a line of the result to stdout. What a terminal would obey, such as an escape, is shown and not sent.

    Raises OutputError where stdout cannot be written to, such as a file on a full disk. A reader that has gone is no
    error, see ``run``.
    """
    _write(printable(line))


def _write(line: str) -> None:
    if sys.stdout is None:  # it was closed before Python started
        raise OutputError("cannot write the result to stdout: it is closed")
    try:
        click.echo(line)
    except BrokenPipeError:
        _silence(sys.stdout)
    except OSError as error:
        _silence(sys.stdout)
        raise OutputError(f"cannot write the result to stdout: {error.strerror}") from error


def _silence(stream: TextIO) -> None:
    """Send the rest of ``stream`` to the null device, since flushing it at exit would fail again, with a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show_json(value: object) -> None:
    """Write ``value`` (builtins, dataclasses, msgspec Structs) to stdout as JSON. Infinity and NaN become null. Bytes
    that are not UTF-8, in the names of files, are written as Python writes them.
    """
    import msgspec

    plain = _encodable(msgspec.to_builtins(value))
    show(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode())


def _encodable(value: object) -> object:
    match value:
        case str():
            return encodable(value)
        case dict():
            return {_encodable(key): _encodable(item) for key, item in value.items()}
        case list() | tuple():
            return [_encodable(item) for item in value]
    return value


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Write a table to stdout.

    headers: the names of the columns; empty for a table without a header. numbers: the names of the columns that are
        aligned to the right.

    Cells wrap between words, and on a terminal only. A terminal that is too narrow for its columns' longest words
    shows each row as a paragraph.
    """
    terminal = sys.stdout is not None and sys.stdout.isatty()
    # Other programs read a pipe by lines, so a row must stay one line there.
    width = shutil.get_terminal_size().columns if terminal else 10_000
    rows = [[printable(cell) for cell in row] for row in rows]
    lines: Iterable[str]
    if headers and sum(_least_widths(headers, rows)) + 2 * len(headers) > width:
        lines = _paragraphs(headers, rows, width)
    else:
        lines = _table(headers, rows, numbers, width, terminal)
    for line in lines:
        _write(line.rstrip())


def _least_widths(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The length of each column's longest word, in characters: a narrower column would cut it."""
    columns = zip(*([headers] if headers else []), *rows, strict=True)
    return [max((len(word) for cell in column for word in cell.split()), default=0) for column in columns]


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
        for header, width_of_word in zip(headers, _least_widths(headers, rows), strict=True):
            table.add_column(header, justify="right" if header in numbers else "left", min_width=width_of_word)
    else:
        for index in range(len(rows[0])):
            table.add_column(no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    text_of_table = io.StringIO()
    Console(file=text_of_table, highlight=False, width=width, force_terminal=styled).print(table)
    return text_of_table.getvalue().splitlines()


def configure(verbose: bool) -> None:
    """Write vaedeploy's warnings and logs to stderr, one line each; with ``verbose``, those of all packages."""

    def show_warning(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
        if verbose or category.__module__.startswith("vaedeploy"):
            say(f"Warning: {message}")

    if not verbose:
        # huggingface_hub's own log handler prints each retry. The package reads this variable when it is imported.
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # Ray prints that a worker died, to stdout. It reads this when it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, handlers=[_LogLines()], force=True)
    logging.getLogger("vaedeploy").setLevel(logging.DEBUG if verbose else logging.WARNING)
    warnings.showwarning = show_warning


class _LogLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        trace = "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip() if record.exc_info else ""
        say(f"{record.levelname.capitalize()}: {record.getMessage()}{trace}")


@contextmanager
def progress_display() -> Iterator[Progress]:
    """A context with a Progress that draws bars on stderr. Where stderr is not a terminal, it writes a line when a step
    starts, and another when it ends. What calls it is stopped there once a signal has asked for that.
    """
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    console = Console(file=sys.stderr)  # the stream itself: sys.stderr is redirected while PyTorch traces
    console.width -= len("^C")  # a terminal echoes that on Ctrl-C; a full line would overflow into a second one
    # rich would redirect stdout as well, which is for results.
    with Bars(*columns, TimeElapsedColumn(), console=console, redirect_stdout=False) as bars:
        tasks: dict[str, TaskID] = {}

        def draw(what: str, done: float, total: float) -> None:
            stop_if_interrupted()
            if what not in tasks:
                tasks[what] = bars.add_task(escape(printable(what)), total=total)
            bars.update(tasks[what], completed=done, total=total)
            if done >= total:
                del tasks[what]

        yield draw


def _lines() -> Progress:
    started: dict[str, float] = {}

    def write(what: str, done: float, total: float) -> None:
        stop_if_interrupted()
        if what not in started and done >= total:  # the step had nothing to do
            say(what)
            return
        if what not in started:
            started[what] = time.monotonic()
            say(f"{what} ...")
        if done >= total:
            say(f"{what}: done in {time.monotonic() - started.pop(what):.1f} s")

    return write
