"""Commands that run a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.group import PATH, cli


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
    from vaedeploy.pipeline.codec import encode_files
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
    from vaedeploy.pipeline.codec import decode_files
    from vaedeploy.runtime import VAE

    with VAE(bundle) as vae, terminal.progress_display() as progress:
        converted = decode_files(vae, latent, out, progress=progress)
    for path in converted.written:
        terminal.show(str(path))
    converted.check()
