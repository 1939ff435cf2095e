"""Commands about presets, and about what this machine has and how fast it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.group import cli
from vaedeploy.cli.options import bundle_argument, json_option
from vaedeploy.cli.parameters import Size
from vaedeploy.cli.progress import progress_display
from vaedeploy.cli.table import show_table


@cli.command()
@json_option
def presets(as_json: bool) -> None:
    """List the presets: the VAEs that can be exported by name.

    Each has its purpose, the shape of its latents, the licence of its weights, and where they come from.

    \b
    Example:
      vaedeploy presets
    """
    from vaedeploy.cli.tables.known import preset_rows
    from vaedeploy.source.preset import presets as known

    if as_json:
        terminal.show_json(list(known().values()))
    else:
        show_table((), preset_rows(known().values()))


@cli.command()
@bundle_argument
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME[:PRECISION]",
    help="Time only this backend, such as openvino:bf16. Repeatable. [default: every backend that is available]",
)
@click.option(
    "--size",
    "sizes",
    type=Size(),
    multiple=True,
    default=("512x512",),
    show_default=True,
    metavar="HxW",
    help="Time images of this height and width, in pixels. Repeatable.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=int,
    default=(1,),
    show_default=True,
    help="Time calls with this many images. Repeatable.",
)
@click.option("--rounds", type=int, default=7, show_default=True, help="Time each backend this many times, in turns.")
@json_option
def bench(bundle: Path, as_json: bool, **options: Any) -> None:
    """Time a bundle's encoder and decoder on this machine.

    The command times whole calls, from and to arrays in the host's memory. The backends take turns, and the figure is
    the median in milliseconds. The floor is the time that a perfect program would take: the operations at the rate of a
    large matrix product, or the weights, input and output at the rate of a large copy, whichever is longer. Both rates
    are measured just before.

    \b
    Example:
      vaedeploy bench mse840k --size 512x512 --size 1024x1024 --batch 1 --batch 4
    """
    from vaedeploy.cli.tables.results import BENCH_COLUMNS, bench_rows, ceiling_lines
    from vaedeploy.pipeline.bench import bench_bundle

    with progress_display() as progress:
        found = bench_bundle(bundle, progress=progress, **options)
    if as_json:
        terminal.show_json(found)
    else:
        show_table(BENCH_COLUMNS, bench_rows(found), numbers=BENCH_COLUMNS[4:8])
        terminal.show_text("\n".join(ceiling_lines(found)))


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show what is installed and which backends are available.

    The command prints whether each backend is available on this machine, and if not, why; what to install for commands
    that lack a package; and the version of each package.

    \b
    Example:
      vaedeploy doctor
    """
    from vaedeploy.cli.tables.known import diagnosis_rows
    from vaedeploy.pipeline.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        terminal.show_json(diagnosis)
    else:
        show_table((), diagnosis_rows(diagnosis))
    for warning in diagnosis.warnings:
        terminal.say(f"Warning: {warning}")
