"""The command line: each command consists of its help, a worked example, and a few lines that call the library.

Each module of this package adds its commands to ``group.cli``. May import everything, and no other package may import
click or rich.
"""

from __future__ import annotations

from collections.abc import Sequence

from vaedeploy.cli import (
    bundles,
    cache,
    completion,
    engines,
    export,
    graphs,
    hub,
    images,
    machine,
    serve,
    terminal,
    triton,
    verify,
)
from vaedeploy.cli.group import cli

__all__ = [
    "bundles",
    "cache",
    "cli",
    "completion",
    "engines",
    "export",
    "graphs",
    "hub",
    "images",
    "machine",
    "main",
    "serve",
    "triton",
    "verify",
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit the process with its exit code.

    arguments: the words after ``vaedeploy``; those of this process unless given.

    Exit codes: 0 done, 1 a stage failed, 2 bad input, 3 verification failed, 130 interrupted, 143 terminated.
    """
    terminal.leave(terminal.run(cli, arguments))
