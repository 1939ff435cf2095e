"""Write docs/cli.md: every command's help, as the command line prints it.

python tools/write_cli_docs.py
"""

from __future__ import annotations

from pathlib import Path

import click

from vaedeploy.cli.group import cli

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
WIDTH = 100

HEAD = """# The command line

Every command's help, as `vaedeploy COMMAND --help` prints it. This page is written by
`python tools/write_cli_docs.py`; edit the help texts in `vaedeploy/cli/` instead.

Results go to stdout; progress, warnings and errors go to stderr. `--json` prints one JSON document on stdout and
nothing else there; an error is words on stderr and an exit code all the same.

A document has the fields of a Python object, and `help()` says what each is: `vd.Report` and `vd.Case` for `verify`,
`vd.Comparison`, `vd.Optimized`, `vd.Bench`, `vd.Preset` and `vd.Profile` for the commands of these names; for `inspect`
those of [bundle-format.md](bundle-format.md). Times are milliseconds (`ms`), sizes bytes, rates of `bench` operations
and bytes a second, shares 0 to 1. `null` is infinity, or that there is no such figure, as the field's text says.
"""


def render() -> str:
    """The page's text, which does not depend on the terminal."""
    root = click.Context(cli, info_name="vaedeploy", terminal_width=WIDTH, help_option_names=["-h", "--help"])
    commands = [(name, cli.commands[name]) for name in cli.list_commands(root)]
    contexts = [root, *(click.Context(c, root, name, terminal_width=WIDTH) for name, c in commands)]
    sections = [f"## {c.command_path}\n\n```text\n{c.command.get_help(c)}\n```\n" for c in contexts]
    return "\n".join([HEAD, *sections])


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
