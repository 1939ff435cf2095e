"""The command line as tests read it: how a run ended, and whether a line could be run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from vaedeploy.cli import cli


@dataclass(frozen=True)
class Ended:
    """How a command line ended: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


def parse(line: str) -> None:
    """Raise click.UsageError where a command line (without ``vaedeploy``) has an option or argument too many or few."""
    name, *arguments = shlex.split(line.partition(" > ")[0])
    with cli.make_context("vaedeploy", [name, *arguments]) as parent:
        cli.commands[name].make_context(name, arguments, parent=parent)
