"""The command that prints and installs completion for shells. ``parameters`` says what is completed."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from vaedeploy.cli import terminal
from vaedeploy.cli.group import cli
from vaedeploy.cli.parameters import OneOf
from vaedeploy.errors import OutputError

SHELLS = ("bash", "zsh", "fish")

VARIABLE = "_VAEDEPLOY_COMPLETE"
"""The environment variable by which a shell's script asks for completions, as click names it."""

ZSH = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }\n"
"""Turns on zsh's completion, if the user's own settings do not."""


@cli.command()
@click.argument("shell", required=False, type=OneOf(SHELLS))
@click.option("--install", is_flag=True, help="Install it for the current user, instead of printing it.")
def completion(shell: str | None, install: bool) -> None:
    """Print or install completion for bash, zsh or fish.

    It completes commands, options, presets, profiles, backends, and bundles, which are folders with a bundle.json.
    Without a name, the shell is the one that the variable SHELL names.

    --install writes the script into a file and, for bash and zsh, a line that reads it into .bashrc or .zshrc, unless
    that is there already. It prints the files that it wrote.

    \b
    Example:
      vaedeploy completion --install
      vaedeploy completion zsh > vaedeploy.zsh
    """
    chosen = shell or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(chosen) if chosen in SHELLS else None
    if kind is None:
        raise click.UsageError(f"The shell is not known. Name one of {', '.join(SHELLS)}: vaedeploy completion bash")
    script = kind(cli, {}, "vaedeploy", VARIABLE).source()
    if chosen == "zsh":
        script = script.replace("\n", f"\n{ZSH}", 1)  # below the line by which zsh finds it in its own folders
    if not install:
        terminal.show(script.rstrip("\n"))
        return
    try:
        written = _install(chosen, script)
    except OSError as error:
        raise OutputError(
            f"cannot install completion: {error}. Print it instead: vaedeploy completion {chosen}"
        ) from error
    for path in written:
        terminal.show(str(path))
    terminal.note("Open a new shell to use it")


def _install(shell: str, script: str) -> list[Path]:
    """Write the script where the shell reads it. Returns the files that were written."""
    from vaedeploy.system.atomic import write_file

    home = _home()
    if shell == "fish":
        settings = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        file, reader = settings / "fish" / "completions" / "vaedeploy.fish", None
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
        file = data / "vaedeploy" / f"completion.{shell}"
        reader = home / ".bashrc" if shell == "bash" else Path(os.environ.get("ZDOTDIR") or home) / ".zshrc"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, script.encode())
    if reader is None:
        return [file]
    line = f"source {shlex.quote(str(file))}\n"
    before = reader.read_bytes() if reader.exists() else b""
    if line.encode() in before:
        return [file]
    separator = b"" if before.endswith(b"\n") or not before else b"\n"
    write_file(reader, before + separator + line.encode())
    return [file, reader]


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise OutputError("there is no home to install completion in; set HOME to your folder") from error
