"""The arguments and options that several commands share.

Nothing here imports more than click at its top, so that ``--help`` does not wait for PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from vaedeploy.cli import terminal
from vaedeploy.cli.parameters import BACKEND, BUNDLE, PATH, PRECISION, PROFILES, VAE, Color, MemorySize
from vaedeploy.cli.progress import progress_display
from vaedeploy.errors import PageError
from vaedeploy.system.progress import Progress

Command = TypeVar("Command", bound=Callable[..., Any])

Result = TypeVar("Result")


def local(bundle: Path | str) -> Path:
    """The folder of a bundle on this disk; one on the hub is pulled into the cache first."""
    if isinstance(bundle, Path):
        return bundle
    from vaedeploy.bundle import bundle_folder

    with progress_display() as progress:
        return bundle_folder(bundle, progress)


def bundle_argument(command: Command) -> Command:
    """The argument BUNDLE, a folder or an address. The command is given the folder."""

    @functools.wraps(command)
    def with_folder(*args: Any, bundle: Path | str, **options: Any) -> Any:
        return command(*args, bundle=local(bundle), **options)

    return click.argument("bundle", type=BUNDLE)(cast(Command, with_folder))


def vae_argument(command: Command) -> Command:
    """The argument VAE, which may also be given as ``--vae``. The command is given ``vae``: a word, or None."""

    @functools.wraps(command)
    def with_vae(*args: Any, vae: str | None, vae_option: str | None, **options: Any) -> Any:
        typed = click.get_current_context().get_parameter_source("vae_option") is ParameterSource.COMMANDLINE
        if vae is not None and vae_option is not None and typed:
            raise click.UsageError(f"The VAE is given twice, as {vae} and as --vae {vae_option}. Give one of them.")
        return command(*args, vae=vae or vae_option, **options)

    option = click.option("--vae", "vae_option", type=VAE, metavar="VAE", help="The same as the argument VAE.")
    return click.argument("vae", required=False, type=VAE)(option(cast(Command, with_vae)))


def out_option(
    metavar: str, help: str, *, required: bool = False, also: str | None = None
) -> Callable[[Command], Command]:
    """-o and --out: the place of what the command makes. also: another spelling of it."""
    names = ("-o", "--out", *([also] if also else []), "out")
    return click.option(*names, type=PATH, required=required, metavar=metavar, help=help)


def json_option(command: Command) -> Command:
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the result as one JSON document; progress still goes to stderr."
    )(command)


def identity_option(command: Command) -> Command:
    return click.option(
        "--identity", metavar="HEX", help="Fail unless the bundle's VAE has this identity, which inspect shows."
    )(command)


def keep_result(work: Callable[[Progress], Result]) -> tuple[Result, PageError | None]:
    """Do ``work`` under a progress display. Returns its result, and the error of its page or None.

    The page is written after the work. If that fails, the PageError holds the result, so it is not lost.
    """
    try:
        with progress_display() as progress:
            return work(progress), None
    except PageError as error:
        return cast(Result, error.result), error


def background_option(command: Command) -> Command:
    return click.option(
        "--background", type=Color(), metavar="COLOR", help="Flatten transparent pictures on this colour."
    )(command)


def tell_page(page: Path | None, problem: PageError | None) -> int:
    """Say where the page is, or why it could not be written. Returns the exit code: 0, or that of the error."""
    if problem is not None:
        terminal.say(f"Error: {problem}")
        return problem.exit_code
    if page is not None:
        terminal.note(f"The page: {page / 'index.html'}")
    return 0


def photos_option(purpose: str) -> Callable[[Command], Command]:
    """--photos, whose help begins with ``purpose``: what the photographs are for."""
    return click.option(
        "--photos",
        type=PATH,
        metavar="DIR",
        help=f"{purpose} on the first nine photographs of this folder, or on this one, instead of the three that "
        "scikit-image carries.",
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
        help="The folder of the VAE in the repository or folder. [default: its top, or its vae, movq or vqgan]",
    )
    return revision(subfolder(command))


def build_options(purpose: str, required: bool = False) -> Callable[[Command], Command]:
    """--profile, whose help begins with ``purpose``, and --profiles: which engines to build. The command is given
    ``profiles``, a tuple of names, and ``folder``.
    """
    profile = click.option(
        "--profile",
        "profiles",
        type=PROFILES,
        multiple=True,
        required=required,
        callback=lambda ctx, param, given: tuple(chain.from_iterable(given)),
        metavar="NAME[,NAME...]",
        help=f"{purpose} for this GPU kind; vaedeploy profiles lists them. Repeatable.",
    )

    def add(command: Command) -> Command:
        return profile(profiles_option(command))

    return add


def profiles_option(command: Command) -> Command:
    return click.option(
        "--profiles",
        "folder",
        type=PATH,
        metavar="DIR",
        help="Also look for profiles in this folder of your own. [default: the folder that VAEDEPLOY_PROFILES names]",
    )(command)


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


def computing_options(command: Command) -> Command:
    """What computes, and in which precision: ``backend`` and ``precision`` of ``VAE``."""
    command = click.option(
        "--precision",
        type=PRECISION,
        help="Compute in this precision, where the backend can. [default: the bundle's]",
    )(command)
    return click.option(
        "--backend",
        type=BACKEND,
        metavar="NAME",
        help="Compute with this backend only. [default: the first that works here]",
    )(command)
