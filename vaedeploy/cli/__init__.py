"""The ``vaedeploy`` command. Each command is its help, a worked example, and a few lines that call the library.

The modules of this package each add their commands to ``group.cli``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vaedeploy.cli import bundles, engines, graphs, images, machine, terminal
from vaedeploy.cli.group import cli

__all__ = ["bundles", "cli", "engines", "graphs", "images", "machine", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (of this process, unless given) and exit: 0 done, 1 a stage failed, 2 bad input,
    3 verification failed, 130 interrupted.
    """
    sys.exit(terminal.run(cli, arguments))
