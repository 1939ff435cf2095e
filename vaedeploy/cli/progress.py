"""Progress of long work on stderr: bars on a terminal, and two lines a step elsewhere."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from vaedeploy.cli import terminal
from vaedeploy.system.interrupts import stop_if_interrupted
from vaedeploy.system.progress import UNMEASURED, Progress
from vaedeploy.system.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import Task, TaskID

IDLE = "Working"
"""What a terminal shows between two steps, and before the first."""

STALLED = 3.0
"""After this many seconds without an advance, a bar pulses: it then says nothing of what is left."""

BESIDE_LABEL = len(" ---- 100% 0:00:00")
"""Columns of a terminal that a bar's label leaves to the bar itself, its share and its time."""


@contextmanager
def progress_display() -> Iterator[Progress]:
    """A context with a Progress that draws bars on stderr. If stderr is not a terminal, it writes a line when a step
    starts, and another when it ends; after -q, nothing. Once a signal has asked to stop, calling it raises ``Stopped``.
    """
    if terminal.is_quiet():
        yield _nothing
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        with _bars(moving=True) as bars, terminal.writing(partial(_write_above, bars)):
            drawn = _Drawn(bars)
            drawn.wait()
            try:
                yield drawn
            finally:
                drawn.go_on()


def _write_above(bars: Bars, text: str) -> None:
    from rich.text import Text

    bars.console.print(Text.from_ansi(text), soft_wrap=True)


def progress_bar() -> Progress:
    """A ``progress=`` for Python: it draws a bar for each step on stderr, where that is a terminal, else two lines.

    >>> vd.export_vae("mse840k", progress=vd.progress_bar())

    A bar moves when the work reports an advance, and not in between. It needs no closing.
    """
    return _Reopened() if sys.stderr.isatty() else _Lines()


def _nothing(what: str, done: float, total: float) -> None:
    stop_if_interrupted()


class _Lines:
    """A Progress that writes a line when a step starts, and another when it ends."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}

    def __call__(self, what: str, done: float, total: float) -> None:
        stop_if_interrupted()
        if total == UNMEASURED:
            return
        if what not in self._started and done >= total:  # the step had nothing to do
            terminal.say(what)
            return
        if what not in self._started:
            self._started[what] = time.monotonic()
            terminal.say(f"{what} ...")
        if done >= total:
            terminal.say(f"{what}: done in {time.monotonic() - self._started.pop(what):.1f} s")


class _Drawn:
    """A Progress that draws on ``bars``, one for each step; an unmeasured step's bar vanishes when the step ends. After
    ``wait``, another bar pulses while there is no step.
    """

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self._waits = False
        self._idle: TaskID | None = None

    def wait(self) -> None:
        """From now on, and after each step, show that work goes on outside of steps."""
        self._waits = True
        self._idle = self.bars.add_task(IDLE, total=None, moved=time.monotonic())

    def go_on(self) -> None:
        """Stop showing it until the next step ends."""
        if self._idle is not None:
            self.bars.remove_task(self._idle)
            self._idle = None

    def __call__(self, what: str, done: float, total: float) -> None:
        from rich.markup import escape

        stop_if_interrupted()
        self.go_on()
        measure = None if total == UNMEASURED else total
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(escape(printable(what)), total=measure, moved=time.monotonic())
        ended = done >= total
        task = self.tasks.pop(what) if ended else self.tasks[what]
        if ended and measure is None:
            self.bars.remove_task(task)
        else:
            self.bars.update(task, completed=done, total=measure, moved=time.monotonic())
        if self._waits and not self.tasks:
            self.wait()


class _Reopened:
    """A Progress that draws while a step is under way, and leaves the terminal alone otherwise. No thread draws: after
    an exception it would go on over a prompt.
    """

    def __init__(self) -> None:
        self._drawn: _Drawn | None = None
        self._close: Callable[[], object] = lambda: None

    def __call__(self, what: str, done: float, total: float) -> None:
        if self._drawn is None:
            self._drawn = _Drawn(_bars(moving=False))
            self._drawn.bars.start()
            self._drawn.bars.console.show_cursor(True)  # that of a prompt, if the work ends by an exception
            self._close = weakref.finalize(self, self._drawn.bars.stop)
        self._drawn(what, done, total)
        self._drawn.bars.refresh()
        if not self._drawn.tasks:
            self._close()
            self._drawn = None


def _bars(*, moving: bool) -> Bars:
    """Bars on stderr. moving: whether a thread draws them, so that they pulse."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.progress_bar import ProgressBar
    from rich.table import Column
    from rich.text import Text

    class Bar(BarColumn):
        def render(self, task: Task) -> ProgressBar:
            bar = super().render(task)
            bar.pulse = bar.pulse or _is_unmeasured(task)
            return bar

    class Label(TextColumn):
        def render(self, task: Task) -> Text:
            label = super().render(task)
            label.truncate(console.width - BESIDE_LABEL, overflow="ellipsis")
            return label

    class Share(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(" " * len("100%")) if _is_unmeasured(task) else super().render(task)

    # The stream itself: sys.stderr is redirected while PyTorch traces.
    console = Console(file=sys.stderr, no_color=not terminal.has_colors())
    console.width -= len("^C")  # a terminal echoes that on Ctrl-C; a full line would overflow into a second one
    time_column = TimeElapsedColumn(table_column=Column(no_wrap=True))  # else it shrinks as the bar does
    columns = (Label("{task.description}"), Bar(), Share("{task.percentage:>3.0f}%"), time_column)
    # rich would redirect stdout as well, which is for results.
    return Bars(*columns, console=console, redirect_stdout=False, auto_refresh=moving)


def _is_unmeasured(task: Task) -> bool:
    """Whether a step does not show how much is left: it has not advanced yet, or not for a while."""
    return not task.finished and (not task.completed or time.monotonic() - task.fields["moved"] > STALLED)
