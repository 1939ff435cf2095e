"""Progress and tables, on a terminal and without one."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import warnings
from contextlib import suppress

import pytest

import vaedeploy as vd
from vaedeploy.cli import terminal
from vaedeploy.cli.progress import _bars, _Drawn, progress_display
from vaedeploy.cli.table import show_table
from vaedeploy.system.progress import unmeasured

# ------------------------------------------------------------------------------------------------------- warnings


@pytest.mark.parametrize(("loudness", "expected"), [("normal", [1, 10, 100]), ("verbose", [1] * 120)])
def test_a_warning_that_comes_again_and_again_is_not_said_each_time(capsys, loudness, expected):
    package = logging.getLogger("vaedeploy")
    root = logging.getLogger()
    before = package.level, root.level, root.handlers[:], warnings.showwarning
    try:
        terminal.configure(loudness)
        for _ in range(120):
            package.warning("decode gave NaN")
        package.warning("encode gave NaN")
        for _ in range(3):
            package.error("the model failed")
    finally:
        package.setLevel(before[0])
        root.setLevel(before[1])
        root.handlers[:], warnings.showwarning = before[2:]
    *repeated, other, first, second, third = capsys.readouterr().err.splitlines()
    assert other == "Warning: encode gave NaN"
    assert first == second == third == "Error: the model failed"
    times = [int(found[1]) if (found := re.match(r"Warning: (\d+) times by now: ", line)) else 1 for line in repeated]
    assert times == expected
    assert all(line.endswith("decode gave NaN") for line in repeated)


# ------------------------------------------------------------------------------------------------------- progress


def test_progress_is_two_lines_a_step_where_there_is_no_terminal(capsys):
    with progress_display() as progress:
        for done in range(3):
            progress("Counting", done, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Counting ..."
    assert re.fullmatch(r"Counting: done in \d+\.\d s", lines[1])
    assert len(lines) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_progress_is_a_bar_on_a_terminal():
    import pty

    script = """
from vaedeploy.cli.progress import progress_display
with progress_display() as progress:
    for done in range(3):
        progress("Counting [sheep]" + 3 * " and goats", done, 2)
print("result")
"""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    lines = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", shown).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) == 78  # Ctrl-C's echo fits in
    assert "Counting [sheep]" in shown
    assert "100%" in shown
    assert done.stdout == b"result\n"


@pytest.mark.parametrize("width", [30, 80])
def test_a_long_label_leaves_a_bar_its_share_and_its_time(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    label = "Encoding a-photograph-of-all-the-sheep-that-there-are-and-some-goats.png, 3024x4032"
    with _bars(moving=False) as bars:
        _Drawn(bars)(label, 1, 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) == width - 2
    assert re.fullmatch(r"Encoding .*… ━+ 100% 0:00:0\d", line)


def test_a_step_without_a_measure_is_gone_when_it_ends_and_is_in_no_log(capsys):
    with _bars(moving=False) as bars:
        drawn = _Drawn(bars)
        drawn.wait()
        drawn("All", 0, 1)
        with suppress(KeyError), unmeasured(drawn, "large.png"):
            assert [(task.description, task.total) for task in bars.tasks] == [("All", 1), ("large.png", None)]
            raise KeyError
        assert [task.description for task in bars.tasks] == ["All"]
    capsys.readouterr()
    with progress_display() as progress, unmeasured(progress, "large.png"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_what_is_said_beside_a_bar_has_lines_of_its_own():
    """It was joined to the bar's line, and went on over the end of the terminal."""
    import pty

    script = """
from vaedeploy.cli import terminal
from vaedeploy.cli.progress import progress_display
with progress_display() as progress:
    progress("Counting", 0, 2)
    run = "Run: vaedeploy verify a-bundle-of-sheep --backend openvino --precision bf16"
    terminal.say("Warning: " + 30 * "sheep " + run)
    progress("Counting", 2, 2)
"""
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"TERM": "xterm", "COLUMNS": "80"}
    subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True, env=environment)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "\x1b[1;33mWarning\x1b[0m: sheep" in shown
    lines = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "\n", shown).replace("\r", "\n").splitlines()
    assert "Warning" in lines
    assert "vaedeploy verify a-bundle-of-sheep --backend openvino --precision bf16" in lines


def test_work_between_two_steps_is_shown_as_such():
    with _bars(moving=False) as bars:
        drawn = _Drawn(bars)

        def shown() -> list[str]:
            return [task.description for task in bars.tasks if not task.finished]

        seen = []
        drawn.wait()
        for step in (("A", 0, 1), ("B", 0, 1), ("A", 1, 1), ("B", 1, 1), ("C", 1, 1)):
            drawn(*step)
            seen.append(shown())
        assert seen == [["A"], ["A", "B"], ["B"], ["Working"], ["Working"]]
        drawn.go_on()
        assert [task.description for task in bars.tasks] == ["A", "B", "C"]


PYTHON = """
import sys, time
import vaedeploy as vd
def work(progress):
    for done in range(3):
        progress("Counting", done, 2)
        if len(sys.argv) > 1 and done:
            raise RuntimeError("lost count")
    progress("Nothing to do", 1, 1)
work(vd.progress_bar())
"""


def drawn(arguments: list[str]) -> str:
    """What ``PYTHON`` sends to a terminal."""
    import pty

    ours, theirs = pty.openpty()
    # From Python 3.13 on, tracebacks have colours too.
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "PYTHON_COLORS": "0"}
    subprocess.run([sys.executable, "-c", PYTHON, *arguments], stderr=theirs, env=environment)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    return shown


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_a_bar_for_python_on_a_terminal():
    shown = drawn([])
    assert "Counting" in shown
    assert "100%" in shown
    assert "Nothing to do" in shown


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_a_bar_for_python_leaves_the_terminal_usable_after_an_exception():
    shown = drawn(["fail"])
    assert "RuntimeError: lost count" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is shown


def test_a_bar_for_python_is_two_lines_a_step_where_there_is_no_terminal(capsys):
    progress = vd.progress_bar()
    for done in range(3):
        progress("Counting", done, 2)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "Counting ..."
    assert re.fullmatch(r"Counting: done in \d+\.\d s", second)


def terminal_of(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """stdout and stderr as terminals of that width, with colours."""
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


COMMAND = "vaedeploy verify a-bundle --report a-folder"

SENTENCES = f"Error: {'word ' * 9}word. To see its images, run: {COMMAND}\n- a cause with {'words ' * 9}\nWarning: no"


@pytest.mark.parametrize("width", [30, 60, 200])
def test_sentences_are_wrapped_between_words_and_commands_are_not_broken(monkeypatch, capsys, width):
    terminal_of(width, monkeypatch)
    for tell in (terminal.say, terminal.show_text):
        tell(SENTENCES)
        captured = capsys.readouterr()
        lines = re.sub(r"\x1b\[\d*m", "", captured.out + captured.err).splitlines()
        assert sum(COMMAND in line for line in lines) == 1
        assert all(len(line) <= width or line.strip() == COMMAND for line in lines)
        assert " ".join(" ".join(lines).split()) == " ".join(SENTENCES.split())


def test_colours(monkeypatch, capsys):
    terminal_of(200, monkeypatch)
    terminal.say("Error: no FAILED here\nWarning: yes")
    terminal.show_text("verified: 3 cases\nFAILED: 2")
    show_table((), [("passed", "a"), ("FAILED", "passed by")])
    shown = capsys.readouterr()
    coloured = re.findall(r"\x1b\[(?:1;)?(3\d)m(?:\x1b\[1m)?(\w+)", shown.err + shown.out)
    assert coloured == [
        ("31", "Error"), ("33", "Warning"), ("32", "verified"), ("31", "FAILED"), ("32", "passed"), ("31", "FAILED"),
    ]  # fmt: skip
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.say("Error: no")
    show_table((), [("passed", "a")])
    assert not re.search(r"\x1b\[3", "".join(capsys.readouterr()))


def test_another_program_reads_whole_lines_without_colours(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    terminal.say(SENTENCES)
    assert capsys.readouterr().err == f"{SENTENCES}\n"


@pytest.mark.parametrize("width", [30, 48, 90])
def test_no_word_is_cut_however_narrow_a_terminal_is(monkeypatch, capsys, width):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    name, long = "a-name-to-be-typed", "a-long-word-of-its-own"
    show_table(("name", "one", "two"), [(name, long, "words " * 8)])
    shown = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert [shown.count(word) for word in (name, long, "words", "…")] == [1, 1, 8, 0]
    assert max(map(len, shown.splitlines())) <= width


def test_a_value_that_is_wider_than_a_terminal_is_folded(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    show_table((), [("identity", "x" * 64)])
    shown = capsys.readouterr().out
    assert (shown.count("x"), "…" in shown) == (64, False)
