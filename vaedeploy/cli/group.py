"""The click group that holds every command, and the options that several commands share.

The modules of commands import nothing heavier than click at their top, so that ``--help`` does not wait for PyTorch.
"""

from __future__ import annotations

import functools
import re
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


class BundlePlace(click.ParamType[Path | str]):
    """A bundle: the path of its folder, or its address on the hub."""

    name = "bundle"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        return value if isinstance(value, Path) or value.startswith("hf://") else Path(value)


BUNDLE = BundlePlace()


def local(bundle: Path | str) -> Path:
    """The folder of a bundle on this disk; one of the hub is pulled into the cache first."""
    if isinstance(bundle, Path):
        return bundle
    from vaedeploy.bundle import bundle_folder

    with terminal.progress_display() as progress:
        return bundle_folder(bundle, progress)


def bundle_argument(command: Command) -> Command:
    """The argument BUNDLE, a folder or an address. The command is given the folder."""

    @functools.wraps(command)
    def with_folder(*args: Any, bundle: Path | str, **options: Any) -> Any:
        return command(*args, bundle=local(bundle), **options)

    return click.argument("bundle", type=BUNDLE)(cast(Command, with_folder))


def numbers(text: str) -> float | tuple[float, ...]:
    """The type of an option that takes one number, or several that are separated by commas."""
    try:
        several = tuple(map(float, text.split(",")))
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor numbers that are separated by commas.") from None
    return several if len(several) > 1 else several[0]


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
    "compare",
    "bench",
    "serve",
    "presets",
    "profiles",
    "doctor",
)
"""The order in which the help lists the commands: that in which they are used."""


class InOrder(click.Group):
    """A group that lists its commands in ``ORDER``. A command that ``ORDER`` lacks comes first, where it is noticed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else -1)


def json_option(command: Command) -> Command:
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the result as one JSON document; progress still goes to stderr."
    )(command)


def page_option(command: Command) -> Command:
    return click.option(
        "--report", "-o", "page", type=PATH, metavar="DIR", help="Also write an HTML page with images, DIR/index.html."
    )(command)


def keep_result(work: Callable[[Progress], Result]) -> tuple[Result, PageError | None]:
    """Do ``work`` under a progress display, and return its result with the error of its page, or None.

    The page is written after the work. Where that fails, the result is in the PageError, and is not lost.
    """
    try:
        with terminal.progress_display() as progress:
            return work(progress), None
    except PageError as error:
        return cast(Result, error.result), error


def tell_page(page: Path | None, problem: PageError | None) -> int:
    """Say where the page is, or why it could not be written. Returns the exit code: 0, or that of the error."""
    if problem is not None:
        terminal.say(f"Error: {problem}")
        return problem.exit_code
    if page is not None:
        terminal.say(f"The page: {page / 'index.html'}")
    return 0


def photos_option(purpose: str) -> Callable[[Command], Command]:
    """--photos, whose help begins with ``purpose``: what the photographs are for."""
    return click.option(
        "--photos",
        type=PATH,
        metavar="DIR",
        help=f"{purpose} on the first nine photographs of this folder, instead of the three that scikit-image carries.",
    )


def place_options(command: Command) -> Command:
    """--revision and --subfolder: where in a repository the VAE is."""
    revision = click.option(
        "--revision",
        metavar="REV",
        help="The branch, tag or commit of the hub repository. [default: its main branch, or the preset's]",
    )
    subfolder = click.option(
        "--subfolder",
        metavar="DIR",
        help="The folder of the VAE in the repository or folder. [default: that itself, or its vae, movq or vqgan]",
    )
    return revision(subfolder(command))


def profiles_option(command: Command) -> Command:
    return click.option(
        "--profiles",
        "folder",
        type=PATH,
        metavar="DIR",
        help="Also look for profiles in this folder of your own. [default: the folder that VAEDEPLOY_PROFILES names]",
    )(command)


class MemorySize(click.ParamType[int]):
    """A number of bytes, with the units that people write: 4G is 4 * 10^9, and 4GiB is 4 * 2^30."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]+)?)([kKMGT]?)(i?)B?", str(value).strip())
        power = " KMGT".find(found[2].upper() or " ") if found else 0
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** power) if found else 0
        if size < 1 or (found and found[3] and not power):
            self.fail(f"{value!r} is no number of bytes above 0; write it as 4G (4 * 10^9) or 4GiB (4 * 2^30)")
        return size


class Size(click.ParamType[tuple[int, int]]):
    """A height and a width in pixels, as in 512x768."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        height, by, width = str(value).partition("x")
        if not (by and height.isdecimal() and width.isdecimal()):
            self.fail(f"{value!r} is not a size; give height x width in pixels, such as 512x768")
        return int(height), int(width)


def memory_option(command: Command) -> Command:
    return click.option(
        "--max-memory",
        type=MemorySize(),
        metavar="SIZE",
        help="Take no more memory than this on the CPU beyond the loaded graphs, such as 4G or 4GiB: what would take "
        "more is computed by rows, with the same result. [default: 70 % of what is free]",
    )(command)


def workspace_option(command: Command) -> Command:
    return click.option(
        "--workspace",
        type=PATH,
        metavar="DIR",
        help="A folder on a fast disk for what --max-memory does not hold. Nothing is left there.",
    )(command)


PRECISIONS = ("fp32", "fp16", "bf16")
"""``values.kinds.Precision``, which help texts do not wait for."""


def computing_options(command: Command) -> Command:
    """What computes, and in which precision: ``backend`` and ``precision`` of ``VAE``."""
    command = click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        help="Compute in this precision, where the backend can. [default: the bundle's]",
    )(command)
    return click.option(
        "--backend", metavar="NAME", help="Compute with this backend alone. [default: the first that works here]"
    )(command)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Show debug messages, and the logs of other packages.")
def cli(verbose: bool) -> None:
    """Take a diffusion model's VAE from PyTorch weights to a verified bundle, and run it.

    \b
    Example:
      vaedeploy export --vae demo --out demo
      vaedeploy encode demo photo.png -o photo.safetensors
      vaedeploy decode demo photo.safetensors -o decoded.png

    Results go to stdout; progress, warnings and errors go to stderr.

    Exit codes: 0 done, 1 a stage failed, 2 bad input, 3 verification failed, 130 interrupted, 143 terminated. They stay
    the same where the reader of a pipe stops early, as head does.
    """
    terminal.configure(verbose)
