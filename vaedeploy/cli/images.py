"""Commands that encode and decode files with a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.documents import converted_document
from vaedeploy.cli.group import cli
from vaedeploy.cli.options import (
    background_option,
    bundle_argument,
    computing_options,
    json_option,
    memory_option,
    out_option,
    workspace_option,
)
from vaedeploy.cli.parameters import PATH
from vaedeploy.cli.progress import progress_display

if TYPE_CHECKING:
    from vaedeploy.pipeline.codec import Converted
    from vaedeploy.runtime import VAE


@cli.command()
@bundle_argument
@click.argument("image", type=PATH)
@out_option("LATENT", "The .safetensors file to write; if IMAGE is a folder, the folder to write to.", required=True)
@click.option("--sample", is_flag=True, help="Draw from the encoder's distribution instead of taking its mean.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --sample: the seed of the random numbers. [default: a fresh one each time]",
)
@click.option(
    "--pad",
    is_flag=True,
    help="Accept images of any size: pad them by reflection to the next size that fits. decode crops them again.",
)
@background_option
@computing_options
@memory_option
@workspace_option
@json_option
def encode(
    bundle: Path,
    image: Path,
    out: Path,
    sample: bool,
    seed: int | None,
    pad: bool,
    background: tuple[int, int, int] | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Encode an image, or a folder of images, to latent files.

    The command prints the files that it wrote. In a folder, if a file fails, the others go on, and the exit code is 2.
    Transparent pictures fail unless the VAE has opacity or --background says what is behind them.

    --json prints the bundle, its identity and backend; files, each with its source, what was written, that file's
    sha256 and bytes, and the seconds that it took; and failures, a list of sentences.

    \b
    Example:
      vaedeploy encode mse840k photo.png -o photo.safetensors
      vaedeploy encode mse840k photos -o latents --pad
    """
    from vaedeploy.pipeline.codec import encode_files
    from vaedeploy.runtime import VAE

    if seed is not None and not sample:
        raise click.UsageError("--seed needs --sample.")
    with progress_display() as progress, VAE(bundle, **options, progress=progress) as vae:
        converted = encode_files(
            vae, image, out, sample=sample, seed=seed, pad=pad, background=background, progress=progress
        )
    _tell(vae, converted, as_json)


@cli.command()
@bundle_argument
@click.argument("latent", type=PATH)
@out_option("IMAGE", "The image to write; if LATENT is a folder, the folder to write PNG images to.", required=True)
@computing_options
@memory_option
@workspace_option
@json_option
def decode(bundle: Path, latent: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Decode a latent file, or a folder of latent files, to images.

    The command prints the files that it wrote. In a folder, if a file fails, the others go on, and the exit code is 2.
    A latent that another VAE made is decoded with a warning.

    --json prints the bundle, its identity and backend; files, each with its source, what was written, that file's
    sha256 and bytes, and the seconds that it took; and failures, a list of sentences.

    \b
    Example:
      vaedeploy decode mse840k photo.safetensors -o decoded.png
      vaedeploy decode mse840k latents -o images
    """
    from vaedeploy.pipeline.codec import decode_files
    from vaedeploy.runtime import VAE

    with progress_display() as progress, VAE(bundle, **options, progress=progress) as vae:
        converted = decode_files(vae, latent, out, progress=progress)
    _tell(vae, converted, as_json)


def _tell(vae: VAE, converted: Converted, as_json: bool) -> None:
    """Print what was written, then raise InputError if there were failures."""
    if as_json:
        terminal.show_json(converted_document(vae, converted))
    else:
        for path in converted.written:
            terminal.show(str(path))
    converted.check()
