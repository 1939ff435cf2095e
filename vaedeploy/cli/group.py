"""The click group of all commands, and what it gives each: -v, -q and environment variables for its options.

The modules of commands import nothing heavier than click at their top, so that ``--help`` does not wait for PyTorch.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from vaedeploy.cli import terminal
from vaedeploy.cli.meant import COMMANDS, about_option
from vaedeploy.version import __version__

ORDER = (
    "export",
    "build",
    "verify",
    "encode",
    "decode",
    "cache",
    "recast",
    "optimize",
    "inspect",
    "swap",
    "push",
    "pull",
    "triton",
    "look",
    "compare",
    "bench",
    "serve",
    "presets",
    "profiles",
    "doctor",
    "completion",
    "help",
)
"""The order of the commands in the help: that in which they are used."""


def loudness() -> list[click.Option]:
    """-v and -q. The last one on the line counts, wherever it is; if there is none, an environment variable does."""

    def keep(ctx: click.Context, param: click.Parameter, given: bool) -> None:
        typed = ctx.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
        if given and (typed or terminal.LOUDNESS not in ctx.meta):
            ctx.meta[terminal.LOUDNESS] = param.name

    told = {
        "verbose": "Show debug messages, and the logs of other packages.",
        "quiet": "Show no progress and no hints; errors and warnings stay.",
    }
    return [
        click.Option(
            [f"-{name[0]}", f"--{name}"],
            is_flag=True,
            expose_value=False,
            callback=keep,
            envvar=f"VAEDEPLOY_{name.upper()}",
            help=help,
        )
        for name, help in told.items()
    ]


class LoudCommand(click.Command):
    """A command that takes -v and -q, as the group does: people write them at either end of the line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params += loudness()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a command line. An unknown option is refused with what may be meant, and so is a long option's name
        after one dash, of which click reads the first letter as an option, and the rest as its value.
        """
        known = [name for option in self.get_params(ctx) for name in option.opts]
        names = (word.partition("=")[0] for word in takewhile("--".__ne__, args))
        slip = next((name for name in names if name.startswith("-") and f"-{name}" in known), None)
        if slip and not ctx.resilient_parsing:  # which is set where the shell completes
            ctx.fail(f"No such option '{slip}'. Did you mean '-{slip}'?")
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            about = about_option(error.option_name, str(ctx.info_name), known)
            told = f"No such option '{error.option_name}'." + (f" {about}" if about else "")
            raise click.UsageError(told, ctx) from error
        except click.BadParameter as error:
            option = error.param
            if option and ctx.get_parameter_source(str(option.name)) is ParameterSource.ENVIRONMENT:
                error.param_hint = f"the environment variable {option.envvar}"
            raise

    def invoke(self, ctx: click.Context) -> Any:
        terminal.configure(ctx.meta.get(terminal.LOUDNESS, "normal"))
        return super().invoke(ctx)


class Commands(click.Group):
    """A group that lists its commands in ``ORDER``, and gives each option its environment variable.

    A command that ``ORDER`` lacks comes first, where it is noticed.
    """

    command_class = LoudCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else -1)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Also name the command here that does what another tool's does."""
        if (meant := COMMANDS.get(args[0])) and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {meant!r}?")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Also name the command whose name is given as an option."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if (name := error.option_name.removeprefix("--")) in self.commands:
                ctx.fail(f"No such option '--{name}'. Did you mean '{name}'?")
            raise

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Also set each option's environment variable. click's own ``auto_envvar_prefix`` would name it after the
        Python function's parameter, whose name is not always the option's.
        """
        super().add_command(cmd, name)
        for option in cmd.params:
            if isinstance(option, click.Option) and option.envvar is None:
                option.envvar = variable(name or str(cmd.name), option)


def variable(command: str, option: click.Option) -> str:
    """The environment variable of an option: ``VAEDEPLOY_EXPORT_KEEP_FP32`` of ``export --keep-fp32``."""
    spelled = next(name for name in option.opts if name.startswith("--"))
    return f"VAEDEPLOY_{command}_{spelled.removeprefix('--')}".upper().replace("-", "_")


@click.group(
    cls=Commands,
    params=loudness(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """Take a diffusion model's VAE from PyTorch weights to a verified bundle, and run it.

    \b
    Example:
      vaedeploy export demo -o demo
      vaedeploy encode demo photo.png -o photo.safetensors
      vaedeploy decode demo photo.safetensors -o decoded.png

    Results go to stdout; progress, warnings and errors go to stderr. Colours are for terminals, and NO_COLOR turns
    them off.

    Each option has an environment variable, named by command and option: VAEDEPLOY_EXPORT_PRECISION=fp16 is export
    --precision fp16, and VAEDEPLOY_VERBOSE=1 is -v.

    Exit codes: 0 done, 1 a stage failed, 2 bad input, 3 verification failed, 130 interrupted, 143 terminated. They stay
    the same where the reader of a pipe stops early, as head does.
    """


class CommandName(click.ParamType[str]):
    """The name of a command."""

    name = "command"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in cli.list_commands(ctx) if name.startswith(incomplete)]


@cli.command("help")
@click.argument("command", required=False, type=CommandName())
@click.pass_context
def help_(ctx: click.Context, command: str | None) -> None:
    """Show the help of a command, or this list.

    \b
    Example:
      vaedeploy help export
    """
    root = ctx.find_root()
    if command is None:
        click.echo(root.get_help())
        return
    name, found, _ = cli.resolve_command(root, [command])
    assert found is not None  # else it has raised
    click.echo(found.get_help(click.Context(found, root, name)))
