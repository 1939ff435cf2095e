"""Commands that tell what is known and what is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.group import PATH, cli, json_option


@cli.command()
@json_option
def presets(as_json: bool) -> None:
    """List the VAEs that are known by name.

    \b
    Example:
      vaedeploy presets
    """
    from vaedeploy.cli.tables.known import preset_rows
    from vaedeploy.source.preset import presets as known

    if as_json:
        terminal.show_json(list(known().values()))
    else:
        terminal.show_table((), preset_rows(known().values()))


@cli.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME", help="Only this one. Repeatable. [default: all here]"
)
@click.option(
    "--size", "sizes", multiple=True, default=("512x512",), show_default=True, metavar="HxW", help="Pixels. Repeatable."
)
@click.option("--batch", "batches", multiple=True, type=int, default=(1,), show_default=True, help="Items. Repeatable.")
@click.option("--rounds", type=int, default=7, show_default=True, help="How often backends take turns.")
@json_option
def bench(bundle: Path, sizes: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Time a bundle's encoder and decoder on this machine.

    On each of its backends. Whole calls, from arrays of the host to arrays of the host; backends take turns, and the
    figure is the median. The floor is what a perfect program would take: operations over the rate of a matrix product
    that was measured just before, or bytes over that of a copy.

    \b
    Example:
      vaedeploy bench mse840k --size 512x512 --size 1024x1024 --batch 1 --batch 4
    """
    from vaedeploy.cli.tables.results import BENCH_COLUMNS, bench_rows, ceiling_lines
    from vaedeploy.pipeline.bench import bench_bundle

    with terminal.progress_display() as progress:
        found = bench_bundle(bundle, sizes=[_size(text) for text in sizes], progress=progress, **options)
    if as_json:
        terminal.show_json(found)
    else:
        terminal.show_table(BENCH_COLUMNS, bench_rows(found), numbers=BENCH_COLUMNS[4:8])
        terminal.show("\n".join(ceiling_lines(found)))


def _size(text: str) -> tuple[int, int]:
    height, by, width = text.partition("x")
    if not (by and height.isdecimal() and width.isdecimal()):
        raise click.UsageError(f"{text!r} is no size; give height x width in pixels, such as 512x768.")
    return int(height), int(width)


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Tell what is installed and what would run here.

    That is each package's version, which backends would answer and why not the others, and what to install.

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
        terminal.show_table((), diagnosis_rows(diagnosis))
    for warning in diagnosis.warnings:
        terminal.say(f"Warning: {warning}")
