"""Commands that make, prove and show bundles."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.group import (
    PATH,
    cli,
    json_option,
    keep_result,
    page_option,
    photos_option,
    profiles_option,
    tell_page,
)
from vaedeploy.errors import VerificationError

if TYPE_CHECKING:
    from vaedeploy.verify.bisect import Bisection
    from vaedeploy.verify.report import Report


@cli.command()
@click.option("--vae", required=True, metavar="NAME|PATH", help="A preset, or a diffusers folder or weights file.")
@click.option(
    "--weights", metavar="SRC", help="Other weights for the preset: a hub repository, a folder, a file, or random:SEED."
)
@click.option("--out", type=PATH, metavar="DIR", help="Where the bundle goes. [default: the VAE's name]")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of the graphs that are run. Inputs and outputs stay float32.",
)
@click.option(
    "--image-input",
    type=click.Choice(["float", "uint8"]),
    default="float",
    show_default=True,
    help="What the encoder takes.",
)
@click.option("--scale", type=float, metavar="X", help="The latent's scale, where nothing states it, or two differ.")
@click.option("--shift", type=float, metavar="X", help="The latent's shift, where nothing states it, or two differ.")
@photos_option
@click.option("--profile", "profiles", multiple=True, metavar="NAME", help="Also build engines for it. Repeatable.")
@profiles_option
@click.option("--no-rewrite", is_flag=True, help="Leave the graphs as PyTorch exports them.")
@click.option("--no-verify", is_flag=True, help="Leave the bundle unverified.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
def export(no_rewrite: bool, no_verify: bool, folder: Path | None, **options: Any) -> None:
    """Make a bundle from a VAE's weights, and verify it.

    The bundle has an ONNX encoder and decoder, compared with PyTorch on photographs.
    Prints the bundle's folder. If verification fails, the bundle stays, marked unverified, and the exit code is 3.

    \b
    Example:
      vaedeploy export --vae mse840k --out mse840k
      vaedeploy export --vae mse840k --weights my-finetune.safetensors --out mine
      vaedeploy export --vae sdxl --precision fp16 --out sdxl-fp16
      vaedeploy export --vae sdxl --profile rtx4090 --out sdxl
    """
    from vaedeploy.pipeline.export import export_vae

    with terminal.progress_display() as progress:
        bundle = export_vae(
            rewrite=not no_rewrite, verify=not no_verify, profile_folder=folder, progress=progress, **options
        )
    terminal.show(str(bundle.path))
    again = f"vaedeploy verify {shlex.quote(str(bundle.path))}"
    if no_verify:
        terminal.say(f"It is not verified yet. To do so: {again}")
    else:
        terminal.say(f"To look at its pictures beside PyTorch's: {again} --report report")


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--weights", metavar="SRC", help="Where the weights are now, if not where the bundle says.")
@click.option("--backend", metavar="NAME", help="What this machine's GPU computes, instead of the graphs on the CPU.")
@click.option("--profile", metavar="NAME", help="The engines of that profile alone.")
@photos_option
@click.option("--bisect", is_flag=True, help="Also find the first tensors that go wrong, and what to do about them.")
@page_option
@json_option
def verify(bundle: Path, weights: str | None, backend: str | None, bisect: bool, as_json: bool, **options: Any) -> None:
    """Compare a bundle with PyTorch, and mark it verified or not.

    With --backend, its engines or what ONNX Runtime computes on this machine's GPU, at the smallest, the best and the
    largest of the sizes that they take. Prints each case with its metrics, what a person would see, and the verdict.
    The exit code is 3 if a limit is exceeded. With --bisect, graphs that failed, or all if none did, are compared with
    the portable ones tensor by tensor.

    \b
    Example:
      vaedeploy verify mse840k
      vaedeploy verify mse840k --json > report.json
      vaedeploy verify mse840k --bisect
      vaedeploy verify mse840k --report report
      vaedeploy verify mse840k --backend tensorrt-rtx --profile rtx4090
    """
    from vaedeploy.pipeline.verify import verify_bundle

    if backend is None and options["profile"] is not None:
        raise click.UsageError("--profile is for engines: give --backend too.")
    if backend is not None and bisect:
        raise click.UsageError("--bisect is for the graphs on the CPU: give no --backend.")
    if bisect:
        import vaedeploy.verify.bisect  # noqa: F401 - what it needs may be missing, which is told before the work
    report, problem = keep_result(
        lambda tell: verify_bundle(bundle, backend=backend, weights=weights, progress=tell, **options)
    )
    if not as_json:
        _show_report(report)
    elif not bisect:
        terminal.show_json(report.to_document())
    code = tell_page(options["page"], problem)
    if bisect:
        _bisect(bundle, report, as_json)
    if not report.passed:
        if backend is None and not bisect:
            terminal.say(f"To find where it goes wrong: vaedeploy verify {bundle} --bisect")
        code = VerificationError.exit_code
    sys.exit(code)


def _show_report(report: Report) -> None:
    from vaedeploy.cli.tables.results import CASE_COLUMNS, case_rows, verdict_lines

    terminal.show_table(CASE_COLUMNS, case_rows(report), numbers=CASE_COLUMNS[4:-1])
    terminal.show("\n".join(verdict_lines(report)))


def _bisect(bundle: Path, report: Report, as_json: bool) -> None:
    """Find where it goes wrong, and show that below the report; as JSON, in one document with it."""
    from vaedeploy.verify.advice import advise
    from vaedeploy.verify.bisect import bisect_bundle

    document = report.to_document()
    try:
        with terminal.progress_display() as progress:
            found = bisect_bundle(bundle, report, progress=progress)
        document["bisection"] = {"traces": found.traces, "advice": advise(found, report)}
    finally:
        if as_json:  # what was found before is not lost with it
            terminal.show_json(document)
    if not as_json:
        _show_bisection(report, found)


def _show_bisection(report: Report, found: Bisection) -> None:
    from vaedeploy.cli.tables.bisect import STEP_COLUMNS, step_rows
    from vaedeploy.verify.advice import advise

    terminal.show("")
    if rows := step_rows(found):
        terminal.show_table(STEP_COLUMNS, rows, numbers=STEP_COLUMNS[6:])
    terminal.show("\n".join(advise(found, report)))


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--check", is_flag=True, help="Prove every file's sha256.")
@click.option("--layers", is_flag=True, help="Also the layers and tensors of each engine.")
@json_option
def inspect(bundle: Path, check: bool, layers: bool, as_json: bool) -> None:
    """Tell what a bundle holds.

    That is its VAE, latent contract, files, verification and engines, with what speaks against each of those here.
    --json has all of bundle.json, and adds to it: problems, a list of texts; engine_states, each engine's state and
    problems; and checked, true after --check. A bundle that --check finds damaged is an error, exit code 2.

    \b
    Example:
      vaedeploy inspect mse840k --check
    """
    from vaedeploy.bundle import Bundle, check_bundle
    from vaedeploy.cli.tables.known import bundle_document, bundle_rows

    opened = check_bundle(bundle) if check else Bundle.open(bundle, verify_hashes=False)
    if as_json:
        terminal.show_json(bundle_document(opened, checked=check))
    else:
        terminal.show_table((), bundle_rows(opened, checked=check, layers=layers))


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--vae", metavar="NAME|PATH", help="The other VAE: a preset, or a diffusers folder or weights file.")
@click.option("--weights", metavar="SRC", help="Other weights for the preset, as for export.")
@click.option("--restore", is_flag=True, help="Bring back the VAE that was there first, bit for bit.")
def swap(bundle: Path, vae: str | None, weights: str | None, restore: bool) -> None:
    """Put another VAE in a bundle's place, or bring one back.

    The other VAE must have the same architecture and latent contract. It is verified and its engines are built before
    anything is put in place. Prints how far it moves pictures.

    \b
    Example:
      vaedeploy swap demo --vae demo-mse
      vaedeploy swap demo --restore
    """
    from vaedeploy.cli.tables.results import drift_rows
    from vaedeploy.pipeline.swap import restore_vae, swap_vae

    if weights is not None and vae is None:
        raise click.UsageError("--weights needs --vae: the preset whose architecture they have.")
    if restore == (vae is not None):
        raise click.UsageError("Give either --vae or --restore.")
    if restore:
        terminal.show(str(restore_vae(bundle).path))
        return
    assert vae is not None
    with terminal.progress_display() as progress:
        swapped, drift = swap_vae(bundle, vae, weights=weights, progress=progress)
    terminal.show_table((), drift_rows(swapped, drift))


@cli.command()
@click.argument("bundles", nargs=-1, required=True, type=PATH, metavar="BUNDLE BUNDLE...")
@click.option("--images", required=True, type=PATH, metavar="DIR", help="A folder of photographs to look at.")
@page_option
@click.option("--backend", metavar="NAME", help="Who computes. [default: the first that answers here]")
@json_option
def compare(bundles: tuple[Path, ...], images: Path, as_json: bool, **options: Any) -> None:
    """Tell which VAE is truest and fastest.

    And which can take another one's latents. Each bundle encodes and decodes the photographs. Then latents of each are
    decoded by each other one: compatible, compatible with a shift (of colour, contrast or scale), or not compatible; a
    wrong scale or shift, flipped signs, permuted channels and another latent space are told apart.

    \b
    Example:
      vaedeploy compare demo demo-mse --images photos -o report
    """
    from vaedeploy.cli.tables.results import COMPARE_COLUMNS, compare_rows
    from vaedeploy.pipeline.compare import compare_bundles
    from vaedeploy.pipeline.compare.words import summary_lines, swap_lines

    found, problem = keep_result(lambda tell: compare_bundles(bundles, images, progress=tell, **options))
    if as_json:
        terminal.show_json(found)
    else:
        terminal.show_table(COMPARE_COLUMNS, compare_rows(found), numbers=COMPARE_COLUMNS[1:])
        terminal.show("\n".join((*summary_lines(found), *swap_lines(found))))
    sys.exit(tell_page(options["page"], problem))
