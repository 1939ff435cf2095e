"""The group that every command joins, and the options that several have.

Only click is imported with these modules: ``--help`` must not wait for PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from vaedeploy.cli import terminal
from vaedeploy.errors import PageError
from vaedeploy.system.progress import Progress
from vaedeploy.version import __version__

Command = TypeVar("Command", bound=Callable[..., Any])

Result = TypeVar("Result")

PATH = click.Path(path_type=Path)

ORDER = (
    "export",
    "build",
    "verify",
    "encode",
    "decode",
    "optimize",
    "inspect",
    "swap",
    "compare",
    "bench",
    "presets",
    "profiles",
    "doctor",
)
"""The commands, as they are used one after the other."""


class InOrder(click.Group):
    """Lists commands in that order, and one that has no place in it first, where it is seen."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else -1)


def json_option(command: Command) -> Command:
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document on stdout; progress stays on stderr."
    )(command)


def page_option(command: Command) -> Command:
    return click.option(
        "--report", "-o", "page", type=PATH, metavar="DIR", help="Write a page with pictures: DIR/index.html."
    )(command)


def keep_result(work: Callable[[Progress], Result]) -> tuple[Result, PageError | None]:
    """Do ``work`` under a progress display. A page that cannot be written does not take the result with it: both are
    returned.
    """
    try:
        with terminal.progress_display() as progress:
            return work(progress), None
    except PageError as error:
        return cast(Result, error.result), error


def tell_page(page: Path | None, problem: PageError | None) -> int:
    """Say where the page is, or why it is not there; returns the exit code of that."""
    if problem is not None:
        terminal.say(f"Error: {problem}")
        return problem.exit_code
    if page is not None:
        terminal.say(f"The page: {page / 'index.html'}")
    return 0


def photos_option(command: Command) -> Command:
    return click.option(
        "--photos",
        type=PATH,
        metavar="DIR",
        help="Verify on the first nine photographs there, instead of scikit-image's.",
    )(command)


def profiles_option(command: Command) -> Command:
    return click.option(
        "--profiles",
        "folder",
        type=PATH,
        metavar="DIR",
        help="A folder of your own profiles. [default: what VAEDEPLOY_PROFILES names]",
    )(command)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Show what the exporter and other packages log.")
def cli(verbose: bool) -> None:
    """Take a diffusion model's VAE from PyTorch weights to a verified bundle, and run it.

    \b
    Example:
      vaedeploy export --vae demo --out demo
      vaedeploy encode demo photo.png -o photo.safetensors
      vaedeploy decode demo photo.safetensors -o decoded.png

    Exit codes: 0 done, 1 a stage failed, 2 bad input, 3 verification failed, 130 interrupted. A reader that leaves
    early, such as head, changes none of them.
    """
    terminal.configure(verbose)
