"""Commands that inspect, swap and compare bundles."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.documents import telling_bundle
from vaedeploy.cli.group import cli
from vaedeploy.cli.options import (
    background_option,
    bundle_argument,
    identity_option,
    json_option,
    keep_result,
    local,
    out_option,
    place_options,
    tell_page,
    vae_argument,
)
from vaedeploy.cli.parameters import BACKEND, BUNDLE, PATH
from vaedeploy.cli.progress import progress_display
from vaedeploy.cli.table import show_table
from vaedeploy.errors import InputError
from vaedeploy.values.words import counted


@cli.command()
@bundle_argument
@click.option("--check", is_flag=True, help="Read every file and compare its sha256 with the manifest.")
@identity_option
@click.option("--layers", is_flag=True, help="Also list the layers and tensors of each engine.")
@json_option
def inspect(bundle: Path, check: bool, identity: str | None, layers: bool, as_json: bool) -> None:
    """Show what a bundle holds.

    The command prints the bundle's VAE, latent contract, files, verification and engines, with their problems on this
    machine, such as an engine for another GPU or of another version of TensorRT. It also prints the memory that a call
    takes on the CPU, beyond the loaded graphs.

    --json prints all of bundle.json with seven more fields: path, the folder; verified; problems, a list of sentences;
    engine_states, the state and the problems of each engine; backends, the verdicts on other backends that run its
    graphs; checked, which is true after --check; and memory, in bytes. If --check finds the bundle damaged, that is an
    error with exit code 2.

    \b
    Example:
      vaedeploy inspect mse840k --check
    """
    from vaedeploy.bundle import Bundle, check_bundle
    from vaedeploy.bundle.encoding import check_identity
    from vaedeploy.cli.tables.bundles import bundle_document, bundle_rows, memory_needs

    opened = check_bundle(bundle) if check else Bundle.open(bundle, verify_hashes=False)
    check_identity(opened.manifest, opened.path, identity)
    if as_json:
        terminal.show_json(bundle_document(opened, checked=check) | {"memory": memory_needs(opened)})
    else:
        show_table((), bundle_rows(opened, checked=check, layers=layers))


@cli.command()
@bundle_argument
@vae_argument
@click.option("--weights", metavar="SRC", help="Use other weights with the preset's architecture, as in export.")
@place_options
@click.option("--restore", is_flag=True, help="Restore the bundle's original VAE, bit for bit.")
@json_option
def swap(bundle: Path, vae: str | None, restore: bool, as_json: bool, **place: str | None) -> None:
    """Replace a bundle's VAE, or restore the original one.

    VAE is the new one, named as for export. It must have the same architecture and latent contract. It is exported and
    verified, and every engine of the bundle is built again, before the bundle is changed. The command prints how far
    latents and images move.

    --json prints the output of inspect --json for the changed bundle, without memory and with three more fields:
    seconds; error, which is null; and drift, which is null after --restore.

    \b
    Example:
      vaedeploy swap demo demo-mse
      vaedeploy swap demo --restore
    """
    from vaedeploy.cli.tables.results import drift_rows
    from vaedeploy.pipeline.swap import restore_vae, swap_vae

    given = {f"--{name}": value for name, value in place.items() if value is not None}
    if given and vae is None:
        option, value = next(iter(given.items()))
        what = "the folder with the config.json, or a preset" if option == "--weights" else "the repository or folder"
        line = f"vaedeploy swap {shlex.quote(str(bundle))} VAE {option} {shlex.quote(value)}"
        raise click.UsageError(f"{option} needs VAE, which says what to put in, here {what}: {line}")
    if restore == (vae is not None):
        raise click.UsageError("Give either VAE, which says what to put in, or --restore.")
    drift = None
    with telling_bundle(as_json) as made, progress_display() as progress:
        if vae is None:
            swapped = restore_vae(bundle)
        else:
            swapped, drift = swap_vae(bundle, vae, progress=progress, **place)
        made.bundle, made.more["drift"] = swapped, drift
    if as_json:
        return
    if drift is None:
        terminal.show(str(swapped.path))
    else:
        show_table((), drift_rows(swapped, drift))


@cli.command()
@click.argument("bundles", nargs=-1, required=True, type=BUNDLE, metavar="BUNDLE BUNDLE...")
@click.option(
    "--images",
    required=True,
    type=PATH,
    metavar="DIR|FILE",
    help="Compare the VAEs on these photographs: a folder, or one.",
)
@out_option("DIR", "Also write an HTML page with images, DIR/index.html.", also="--report")
@background_option
@click.option(
    "--backend", type=BACKEND, metavar="NAME", help="Run on this backend. [default: the first that is available]"
)
@click.option("--no-timing", is_flag=True, help="Do not time the VAEs, which takes about a third of the time.")
@json_option
def compare(
    bundles: tuple[Path | str, ...], images: Path, out: Path | None, no_timing: bool, as_json: bool, **options: Any
) -> None:
    """Compare VAEs: fidelity, speed and compatible latents.

    Each bundle encodes and decodes the photographs. The command prints how far each result is from its photograph, how
    long each VAE takes, and which is truest and fastest. Then each VAE decodes latents of each other one. The verdict
    for a pair is compatible, compatible with a shift (of colour, contrast or scale), or not compatible; a wrong scale
    or shift, flipped signs, permuted channels and another latent space are distinguished. VAEs that cannot show the
    photographs by themselves, as with random weights, are not judged.

    Slow calls are timed in fewer rounds, or on a smaller picture; the command prints how many, and its size.

    Photographs that cannot be read, or that are transparent and have no --background, are named; the others are
    compared, and the exit code is 2.

    LPIPS and DISTS are measured too, where torchmetrics, torchvision and the weights of their networks are on this
    machine. Nothing is downloaded.

    \b
    Example:
      vaedeploy compare demo demo-mse --images photos -o report
    """
    from vaedeploy.cli.tables.results import compare_columns, compare_rows
    from vaedeploy.pipeline.compare import compare_bundles
    from vaedeploy.pipeline.compare.words import summary_lines, swap_lines

    found, problem = keep_result(
        lambda tell: compare_bundles(
            list(map(local, bundles)), images, page=out, timing=not no_timing, progress=tell, **options
        )
    )
    if as_json:
        terminal.show_json(found)
    else:
        columns = compare_columns(found)
        show_table(columns, compare_rows(found), numbers=columns[1:])
        terminal.show_text("\n".join((*summary_lines(found), *swap_lines(found), *found.left_out)))
    _end(found.failures, len(found.reconstructions) // len(found.bundles), tell_page(out, problem))


@cli.command()
@bundle_argument
@click.argument("images", nargs=-1, type=PATH, metavar="IMAGE...")
@out_option("DIR", "The folder of the HTML page, DIR/index.html.", required=True, also="--report")
@background_option
@click.option(
    "--backend", type=BACKEND, metavar="NAME", help="Run on this backend. [default: the first that is available]"
)
@json_option
def look(bundle: Path, images: tuple[Path, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Show what a VAE does to your own pictures, on a page.

    Each IMAGE, or each picture in a folder, is encoded and decoded, and shown beside the original: to zoom, to flicker,
    and with the difference. Of a picture over 1024 pixels a side, only the middle is used. The command prints the
    faults that a person would see, and LPIPS and DISTS as in compare. Pictures that cannot be read, or that are
    transparent and have no --background, are named; the others are shown, and the exit code is 2.

    --json prints the bundle, and reconstructions, what was measured of each picture. If there are any, it also prints
    left_out and failures, sentences on metrics that were not measured and on pictures that are not shown, and cuts, the
    sizes of pictures before and after they were cut to the middle.

    \b
    Example:
      vaedeploy look demo portrait.png photos -o look
    """
    from vaedeploy.bundle.stored import is_bundle
    from vaedeploy.cli.tables.results import LOOK_COLUMNS, look_rows
    from vaedeploy.pipeline.compare.words import perceptual_lines
    from vaedeploy.pipeline.look import look_at_bundle

    if not images:
        raise click.UsageError(f"Missing argument 'IMAGE...': the first argument is the bundle, and that is {bundle}.")
    if other := next(filter(is_bundle, images), None):
        raise InputError(
            f"{other} is a bundle, and stands where a picture is wanted. look takes one bundle; to compare several: "
            f"vaedeploy compare {shlex.quote(str(bundle))} {shlex.quote(str(other))} --images DIR"
        )
    found, problem = keep_result(lambda tell: look_at_bundle(bundle, images, page=out, progress=tell, **options))
    if as_json:
        terminal.show_json(found)
    else:
        show_table(LOOK_COLUMNS, look_rows(found))
        terminal.show_text("\n".join((*perceptual_lines(found.reconstructions), *found.left_out)))
    _end(found.failures, len(found.reconstructions), tell_page(out, problem))


def _end(failures: Sequence[str], shown: int, code: int) -> NoReturn:
    """End with ``code``, or, where pictures failed, with an error that names them. shown: how many did not."""
    if failures:
        total = counted(len(failures) + shown, "picture")
        told = f"{len(failures)} of {total} failed; the result is of the others:"
        raise InputError("\n  ".join((told, *failures)))
    sys.exit(code)
