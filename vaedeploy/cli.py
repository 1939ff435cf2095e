"""The ``vaedeploy`` command. Each command is its help, a worked example, and a few lines that call the library.

Only click is imported with this module: ``--help`` must not wait for PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from vaedeploy import __version__, terminal
from vaedeploy.errors import VerificationError

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (of this process, unless given) and exit: 0 done, 1 a stage failed, 2 bad input,
    3 verification failed, 130 interrupted.
    """
    sys.exit(terminal.run(cli, arguments))


class _InOrder(click.Group):
    """Lists commands as they are defined, which is the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _json(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(command)


def _photos(command: Command) -> Command:
    return click.option(
        "--photos",
        type=PATH,
        metavar="DIR",
        help="Verify on the first nine photographs there, instead of scikit-image's.",
    )(command)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Show what the exporter and other packages log.")
def cli(verbose: bool) -> None:
    """Take a diffusion model's VAE from PyTorch weights to a verified bundle, and run it.

    \b
    Example:
      vaedeploy export --vae demo --out demo
      vaedeploy encode demo photo.png -o photo.safetensors
      vaedeploy decode demo photo.safetensors -o decoded.png

    Exit codes: 0 done, 1 a stage failed, 2 bad input, 3 verification failed, 130 interrupted.
    """
    terminal.configure(verbose)


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
@click.option("--scale", type=float, metavar="X", help="The latent's scale, where the model does not state it.")
@click.option("--shift", type=float, metavar="X", help="The latent's shift, where the model does not state it.")
@_photos
@click.option("--no-rewrite", is_flag=True, help="Leave the graphs as PyTorch exports them.")
@click.option("--no-verify", is_flag=True, help="Leave the bundle unverified.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
def export(no_rewrite: bool, no_verify: bool, **options: Any) -> None:
    """Make a bundle from a VAE's weights, and verify it.

    The bundle has an ONNX encoder and decoder, compared with PyTorch on photographs.
    Prints the bundle's folder. If verification fails, the bundle stays, marked unverified, and the exit code is 3.

    \b
    Example:
      vaedeploy export --vae mse840k --out mse840k
      vaedeploy export --vae mse840k --weights my-finetune.safetensors --out mine
      vaedeploy export --vae sdxl --precision fp16 --out sdxl-fp16
    """
    from vaedeploy.pipeline import export_vae

    with terminal.progress_display() as progress:
        bundle = export_vae(rewrite=not no_rewrite, verify=not no_verify, progress=progress, **options)
    terminal.show(str(bundle.path))


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--weights", metavar="SRC", help="Where the weights are now, if not where the bundle says.")
@_photos
@_json
def verify(bundle: Path, weights: str | None, photos: Path | None, as_json: bool) -> None:
    """Compare a bundle with PyTorch, and mark it verified or not.

    Prints each case with its metrics, and the verdict. The exit code is 3 if a limit is exceeded.

    \b
    Example:
      vaedeploy verify mse840k
      vaedeploy verify mse840k --json > report.json
    """
    from vaedeploy.overview import CASE_COLUMNS, case_rows, verdict_lines
    from vaedeploy.pipeline import verify_bundle

    with terminal.progress_display() as progress:
        report = verify_bundle(bundle, weights=weights, photos=photos, progress=progress)
    if as_json:
        terminal.show(report.to_json().decode())
    else:
        terminal.show_table(CASE_COLUMNS, case_rows(report), numbers=CASE_COLUMNS[3:-1])
        terminal.show("\n".join(verdict_lines(report)))
    if not report.passed:
        sys.exit(VerificationError.exit_code)


@cli.command()
@click.argument("bundle", type=PATH)
@click.argument("image", type=PATH)
@click.option(
    "-o",
    "out",
    required=True,
    type=PATH,
    metavar="LATENT",
    help="The .safetensors file to write, or a folder for a folder.",
)
@click.option("--sample", is_flag=True, help="Draw from the distribution instead of taking its mean.")
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", help="What --sample draws from. [default: a fresh one]"
)
@click.option("--pad", is_flag=True, help="Take any size: grow the image by reflection; decode cuts it off again.")
def encode(bundle: Path, image: Path, out: Path, sample: bool, seed: int | None, pad: bool) -> None:
    """Turn a picture, or a folder of them, into latents.

    Prints the files written. In a folder, a file that fails does not stop the others, and the exit code is 2.

    \b
    Example:
      vaedeploy encode mse840k photo.png -o photo.safetensors
      vaedeploy encode mse840k photos -o latents --pad
    """
    from vaedeploy.convert import encode_files
    from vaedeploy.runtime import VAE

    if seed is not None and not sample:
        raise click.UsageError("--seed is of use with --sample only.")
    with VAE(bundle) as vae, terminal.progress_display() as progress:
        converted = encode_files(vae, image, out, sample=sample, seed=seed, pad=pad, progress=progress)
    for path in converted.written:
        terminal.show(str(path))
    converted.check()


@cli.command()
@click.argument("bundle", type=PATH)
@click.argument("latent", type=PATH)
@click.option(
    "-o", "out", required=True, type=PATH, metavar="IMAGE", help="The picture to write, or a folder for a folder."
)
def decode(bundle: Path, latent: Path, out: Path) -> None:
    """Turn a latent file, or a folder of them, into pictures.

    Prints the files written. In a folder, a file that fails does not stop the others, and the exit code is 2.
    A latent that another VAE made is decoded too, and a warning says so.

    \b
    Example:
      vaedeploy decode mse840k photo.safetensors -o decoded.png
      vaedeploy decode mse840k latents -o pictures
    """
    from vaedeploy.convert import decode_files
    from vaedeploy.runtime import VAE

    with VAE(bundle) as vae, terminal.progress_display() as progress:
        converted = decode_files(vae, latent, out, progress=progress)
    for path in converted.written:
        terminal.show(str(path))
    converted.check()


@cli.command()
@click.argument("graph", type=PATH, metavar="IN.onnx")
@click.option("-o", "out", required=True, type=PATH, metavar="OUT.onnx", help="The file to write; OUT.onnx.data too.")
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    default="onnxruntime",
    show_default=True,
    help="What will run it.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Of the graph; inputs and outputs keep their types. [default: the graph's own]",
)
@click.option(
    "--inputs",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="A .safetensors file of real inputs, by name: fp16 is scaled and both graphs compared on them. Repeatable.",
)
@click.option(
    "--sizes",
    multiple=True,
    metavar="NAME=N",
    help="A dimension's size to count operations at. Repeatable. [default: batch 1, 512 for pictures, else 64]",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@_json
def optimize(graph: Path, sizes: Sequence[str], as_json: bool, **options: Any) -> None:
    """Rewrite any ONNX graph of a VAE into an equal one that runs faster, or in half precision.

    IN.onnx may come from any exporter. Prints each rule with its matches, what was left alone and why, operations and
    bytes before and after, and how far each output moved when both graphs were run.

    \b
    Example:
      vaedeploy optimize decoder.onnx -o faster.onnx
      vaedeploy optimize decoder.onnx -o fp16.onnx --target tensorrt --precision fp16 --inputs latents.safetensors
      vaedeploy optimize decoder.onnx -o faster.onnx --sizes height=128 --sizes width=128
    """
    from vaedeploy.optimize import optimize_onnx
    from vaedeploy.optimize.inputs import parse_sizes
    from vaedeploy.optimize.rows import closing_lines, tables

    with terminal.progress_display() as progress:
        optimized = optimize_onnx(graph, sizes=parse_sizes(sizes), progress=progress, **options)
    if as_json:
        terminal.show_json(optimized)
    else:
        for table in tables(optimized):
            terminal.show_table(*table)
            terminal.show("")
        terminal.show("\n".join(closing_lines(optimized)))
    for warning in optimized.warnings:
        terminal.say(f"Warning: {warning}")


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--check", is_flag=True, help="Prove every file's sha256.")
@_json
def inspect(bundle: Path, check: bool, as_json: bool) -> None:
    """Tell what a bundle holds.

    That is its VAE, latent contract, files and verification.

    \b
    Example:
      vaedeploy inspect mse840k --check
    """
    from vaedeploy.bundle import Bundle, check_bundle
    from vaedeploy.overview import bundle_rows

    opened = check_bundle(bundle) if check else Bundle.open(bundle, verify_hashes=False)
    if as_json:
        terminal.show_json(opened.manifest)
    else:
        terminal.show_table((), bundle_rows(opened, checked=check))


@cli.command()
@_json
def presets(as_json: bool) -> None:
    """List the VAEs that are known by name.

    \b
    Example:
      vaedeploy presets
    """
    from vaedeploy.overview import preset_rows
    from vaedeploy.preset import presets as known

    if as_json:
        terminal.show_json(list(known().values()))
    else:
        terminal.show_table((), preset_rows(known().values()))


@cli.command()
@_json
def doctor(as_json: bool) -> None:
    """Tell what is installed and what would run here.

    That is each package's version, which backends would answer and why not the others, and what to install.

    \b
    Example:
      vaedeploy doctor
    """
    from vaedeploy.doctor import diagnose
    from vaedeploy.overview import diagnosis_rows

    diagnosis = diagnose()
    if as_json:
        terminal.show_json(diagnosis)
    else:
        terminal.show_table((), diagnosis_rows(diagnosis))
    for warning in diagnosis.warnings:
        terminal.say(f"Warning: {warning}")
