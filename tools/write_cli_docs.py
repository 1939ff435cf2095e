"""Write docs/cli.md: the help of every command, as the command line prints it.

python tools/write_cli_docs.py
"""

from __future__ import annotations

from pathlib import Path

import click

from vaedeploy.cli.group import cli

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
WIDTH = 100

HEAD = """# The command line

This page has the help of every command, as `vaedeploy COMMAND --help` prints it. `python tools/write_cli_docs.py`
writes it; to change it, edit the help texts in `vaedeploy/cli/`.

Results go to stdout; progress, warnings and errors go to stderr. `--json` prints one JSON document on stdout and
nothing else there; an error is still a sentence on stderr and an exit code.

Colours, bars and line breaks are for terminals alone; `NO_COLOR=1` turns colours off. `-q` leaves out progress and
hints, `-v` adds debug messages; either stands anywhere on the line.

`vaedeploy completion --install` makes bash, zsh or fish complete commands, options, presets, profiles, backends and
bundles.

Each option has an environment variable of the command's and its own name: `VAEDEPLOY_EXPORT_PRECISION=fp16` is
`export --precision fp16`, `VAEDEPLOY_ENCODE_MAX_MEMORY=4G` is `encode --max-memory 4G`, and `VAEDEPLOY_VERIFY_JSON=1`
is `verify --json`. Several values of one option have spaces between them. What is typed overrules a variable.
`VAEDEPLOY_PROFILES` names a folder of profiles, for the command line and for Python.

A JSON document has the fields of a Python object, whose `help()` explains each: `vd.Report` and `vd.Case` for `verify`
(see [verification.md](verification.md#the-report)), `vd.Comparison` for `compare`, `vd.Optimized` for `optimize`,
`vd.Bench` for `bench`, `vd.Preset` for `presets` and `vd.Profile` for `profiles`. Commands that make a bundle, and
`inspect`, print the fields of [bundle-format.md](bundle-format.md) and those that their help names. Times are in
milliseconds (`ms`) or `seconds`, sizes in bytes, the rates of `bench` in operations and bytes per second; shares go
from 0 to 1. `null` is infinity or means that there is no such figure, as the description of the field says.
"""


def render() -> str:
    """The text of the page; the width of the terminal does not change it."""
    root = click.Context(cli, info_name="vaedeploy", terminal_width=WIDTH, help_option_names=["-h", "--help"])
    commands = [(name, cli.commands[name]) for name in cli.list_commands(root)]
    contexts = [root, *(click.Context(c, root, name, terminal_width=WIDTH) for name, c in commands)]
    sections = [f"## {c.command_path}\n\n```text\n{c.command.get_help(c)}\n```\n" for c in contexts]
    return "\n".join([HEAD, *sections])


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
