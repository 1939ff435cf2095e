"""Progress and tables, on a terminal and without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from vaedeploy.cli import terminal

# ------------------------------------------------------------------------------------------------------- progress


def test_progress_is_two_lines_a_step_where_there_is_no_terminal(capsys):
    with terminal.progress_display() as progress:
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
from vaedeploy.cli.terminal import progress_display
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


@pytest.mark.parametrize("width", [30, 48, 90])
def test_no_word_is_cut_however_narrow_a_terminal_is(monkeypatch, capsys, width):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    name, long = "a-name-to-be-typed", "a-long-word-of-its-own"
    terminal.show_table(("name", "one", "two"), [(name, long, "words " * 8)])
    shown = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert [shown.count(word) for word in (name, long, "words", "…")] == [1, 1, 8, 0]
    assert max(map(len, shown.splitlines())) <= width


def test_a_value_that_is_wider_than_a_terminal_is_folded(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    terminal.show_table((), [("identity", "x" * 64)])
    shown = capsys.readouterr().out
    assert (shown.count("x"), "…" in shown) == (64, False)
