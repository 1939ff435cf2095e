"""All output of the command line: results on stdout; progress, warnings and errors on stderr.

Slow packages are imported inside functions, so that ``--help`` and usage errors do not wait for them.
"""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, NoReturn, TextIO

import click

from vaedeploy.errors import OutputError, VaedeployError
from vaedeploy.system.interrupts import SIGNALLED, Stopped, remembering
from vaedeploy.system.text import encodable, printable

LOUDNESS = "vaedeploy.loudness"
"""Where a click context keeps which of -v and -q was given."""

Loudness = Literal["verbose", "normal", "quiet"]

COLORS = {"passed": "green", "verified": "green", "Warning": "yellow", "unverified": "yellow", "Error": "red"}
COLORS |= {"FAILED": "red"}
"""Word -> its colour on a terminal, where it begins a line or is a cell of a table."""

OPENING = re.compile(rf"^({'|'.join(COLORS)})\b", re.MULTILINE)

COMMAND = re.compile(r"(?<=[Rr]un: )\S.*?(?=\.? *$|\. [A-Z(]|; |, or )", re.MULTILINE)
"""A command in a sentence. People copy it from the terminal, so lines do not break within it."""

JOINED = "\0"
"""Stands for a space at which a line does not break. Texts from ``printable`` have none."""


def run(command: click.Command, arguments: Sequence[str] | None) -> int:
    """Run a command line and return its exit code. Every expected error is reported here, and nowhere else.

    If the reader of a pipe stops early, as ``head`` does, the rest of the output is dropped and the code is the same.
    """
    stdout = sys.stdout
    try:
        with remembering():
            result = command.main(arguments, prog_name="vaedeploy", standalone_mode=False)
    except click.ClickException as error:
        told = io.StringIO()
        error.show(told)
        say(told.getvalue().rstrip())
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

    After a signal, it ends at once: everything is closed by then, but Python would still free PyTorch's objects one by
    one, which has taken most of a minute on a busy machine. The sender of the signal would kill sooner.
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
    """Write sentences for people to stderr: an error, a warning, or what came of the work. What a terminal would obey,
    such as an escape, is shown and not sent.
    """
    text = _dressed(printable(message), sys.stderr)
    try:
        if _above is None:
            click.echo(text, err=True)
        else:
            _above(text)
    except BrokenPipeError:
        _silence(sys.stderr)


_above: Callable[[str], None] | None = None
"""Writes text above the bars on stderr; None while there are none."""


@contextmanager
def writing(above: Callable[[str], None]) -> Iterator[None]:
    """Context in which ``say`` writes with ``above``: a line that is written past a bar would be joined to it."""
    global _above
    _above = above
    try:
        yield
    finally:
        _above = None


def note(message: str) -> None:
    """Write optional sentences to stderr, such as what to run next. -q leaves them out."""
    if not is_quiet():
        say(message)


def is_quiet() -> bool:
    """Whether -q was given."""
    return _loudness() == "quiet"


def is_verbose() -> bool:
    """Whether -v was given."""
    return _loudness() == "verbose"


def _loudness() -> Loudness:
    context = click.get_current_context(silent=True)
    chosen: Loudness = context.meta.get(LOUDNESS, "normal") if context else "normal"
    return chosen


def show(line: str) -> None:
    """Write a line of the result to stdout, as it is: a path, or JSON. What a terminal would obey, such as an escape,
    is shown and not sent.

    Raises OutputError where stdout cannot be written to, such as a file on a full disk. A reader that has gone is no
    error, see ``run``.
    """
    write(printable(line))


def show_text(text: str) -> None:
    """Write sentences of the result to stdout, as ``show`` does, wrapped between words on a terminal."""
    write(_dressed(printable(text), sys.stdout))


def _dressed(text: str, stream: TextIO | None) -> str:
    """``text`` as ``stream`` shows it: on a terminal with colours and wrapped between words, elsewhere as it is."""
    # Beside a bar, stderr is rich's object, which before version 15 says that it is no terminal.
    if stream is None or not getattr(stream, "rich_proxied_file", stream).isatty():
        return text
    text = "\n".join(_wrapped(line, width_of(stream)) for line in text.split("\n"))
    if not has_colors():
        return text
    return OPENING.sub(lambda word: click.style(word[0], fg=COLORS[word[0]], bold=True), text)


def _wrapped(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2 * line.lstrip().startswith("- "))
    joined = COMMAND.sub(lambda command: command[0].replace(" ", JOINED), line)
    lines = textwrap.wrap(joined, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(JOINED, " ")


def has_colors() -> bool:
    """Whether to send colours to a terminal: not if NO_COLOR is set (no-color.org), or it has none."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width_of(stream: TextIO) -> int:
    """The width of a terminal in characters; COLUMNS overrules it. 80 where it is not known."""
    try:
        return int(os.environ.get("COLUMNS", "")) or os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


def write(line: str) -> None:
    """Write a line to stdout. Raises OutputError as ``show`` does."""
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


def configure(loudness: Loudness) -> None:
    """Write vaedeploy's warnings and logs to stderr, a line each; where it is verbose, those of all packages."""
    verbose = loudness == "verbose"

    def show_warning(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
        if verbose or category.__module__.startswith("vaedeploy"):
            say(f"Warning: {message}")

    if not verbose:
        # huggingface_hub's own log handler prints each retry. The package reads this variable when it is imported.
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # Ray prints to stdout that a worker died. It reads this when it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, handlers=[_LogLines(every=verbose)], force=True
    )
    logging.getLogger("vaedeploy").setLevel(logging.DEBUG if verbose else logging.WARNING)
    warnings.showwarning = show_warning


class _LogLines(logging.Handler):
    """Says each record. The same warning is said the first time, and then when it came 10, 100, 1000 and more times:
    ``compare`` may decode dozens of times with a VAE whose half precision overflows, and ``serve`` for months.

    every: say it each time.
    """

    MOST = 1000
    """So many texts are counted; then counting begins anew."""

    def __init__(self, every: bool) -> None:
        super().__init__()
        self._every = every
        self._times: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        trace = "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip() if record.exc_info else ""
        text = record.getMessage() + trace
        times = 1 if self._every or record.levelno != logging.WARNING else self._count(text)
        if times == 1:
            say(f"{record.levelname.capitalize()}: {text}")
        elif re.fullmatch("10+", str(times)):
            say(f"{record.levelname.capitalize()}: {times} times by now: {text}")

    def _count(self, text: str) -> int:
        if len(self._times) >= self.MOST:
            self._times.clear()
        self._times[text] += 1
        return self._times[text]
