"""Commands for TensorRT engines and the GPU profiles that they are built for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.documents import telling_bundle
from vaedeploy.cli.group import cli
from vaedeploy.cli.options import build_options, bundle_argument, json_option, profiles_option
from vaedeploy.cli.parameters import OneOf
from vaedeploy.cli.progress import progress_display
from vaedeploy.cli.table import show_table


@cli.command()
@bundle_argument
@build_options("Build engines", required=True)
@click.option(
    "--backend",
    type=OneOf(["tensorrt", "tensorrt-rtx"]),
    help="Build engines for this backend. [default: the backend that the profile names]",
)
@click.option("--force", is_flag=True, help="Build engines again even if they are up to date.")
@json_option
def build(bundle: Path, profiles: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Build TensorRT engines of a bundle for GPU kinds.

    A build needs neither PyTorch nor the weights; with tensorrt-rtx, it needs no GPU either. The command puts the
    engines into the bundle and prints them. They are unverified until vaedeploy verify --backend has run them on their
    GPU. If one build fails, the others go on, and the exit code is 1.

    --json prints the output of inspect --json without memory, with two more fields: seconds, the time that it took, and
    error, which is null, or says which builds failed and why.

    \b
    Example:
      vaedeploy build mse840k --profile rtx4090,rtx5090
      vaedeploy build mse840k --profile my-gpu --profiles my-profiles
    """
    from vaedeploy.cli.tables.bundles import ENGINE_COLUMNS, engine_rows
    from vaedeploy.pipeline.build import build_engines

    with telling_bundle(as_json) as made, progress_display() as progress:
        made.bundle = built = build_engines(bundle, profiles, progress=progress, **options)
    if not as_json:
        show_table(ENGINE_COLUMNS, engine_rows(built, profiles))


@cli.command()
@click.option(
    "--init",
    "name",
    metavar="NAME",
    help="Write NAME.toml, a commented profile of the GPU in this machine for you to change.",
)
@profiles_option
@json_option
def profiles(name: str | None, folder: Path | None, as_json: bool) -> None:
    """List the GPU kinds that engines can be built for.

    With --init, the command starts a profile of your own instead, and prints the file that it wrote. The file goes into
    the folder of --profiles, else into that of VAEDEPLOY_PROFILES, else into the current directory.

    \b
    Example:
      vaedeploy profiles
      vaedeploy profiles --init my-gpu --profiles my-profiles
    """
    from vaedeploy.cli.tables.known import PROFILE_COLUMNS, profile_rows, profile_sizes
    from vaedeploy.engines.profile import init_profile
    from vaedeploy.engines.profile import profiles as known

    if name is not None:
        terminal.show(str(init_profile(name, folder)))
    elif as_json:
        terminal.show_json(list(known(folder).values()))
    else:
        found = known(folder).values()
        show_table(PROFILE_COLUMNS, profile_rows(found))
        terminal.show_text("\n" + "\n".join(profile_sizes(found)))
