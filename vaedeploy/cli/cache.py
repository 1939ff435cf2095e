"""The commands that make caches of latents, and write them as trainers read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.group import cli
from vaedeploy.cli.options import background_option, bundle_argument, json_option, memory_option, out_option
from vaedeploy.cli.parameters import PATH, OneOf, Size
from vaedeploy.cli.progress import progress_display
from vaedeploy.values.words import counted


@cli.command()
@bundle_argument
@click.argument("source", type=PATH)
@out_option("CACHE", "The folder of the cache; it is made.", required=True)
@click.option(
    "--buckets",
    type=click.IntRange(min=1),
    metavar="PX",
    help="Resize and crop each picture to the most similar of the sizes with about PX x PX pixels.",
)
@click.option(
    "--bucket-step",
    type=click.IntRange(min=1),
    metavar="PX",
    help="The sides of --buckets are multiples of this. [default: the VAE's factor]",
)
@click.option("--size", type=Size(), metavar="HxW", help="Resize and crop each picture to this height and width.")
@click.option(
    "--no-resize", is_flag=True, help="Keep each picture's size, padded by reflection to a multiple of the factor."
)
@click.option(
    "--crop",
    type=OneOf(["center", "corner", "random"]),
    default="center",
    show_default=True,
    help="Where a picture that is too long is cropped: at both ends, at its bottom or right, or anywhere.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The seed of --crop random.")
@click.option("--flip", is_flag=True, help="Encode each picture mirrored as well.")
@background_option
@click.option(
    "--dtype",
    type=OneOf(["float16", "bfloat16", "float32"]),
    default="float16",
    show_default=True,
    help="The type of the stored numbers.",
)
@click.option(
    "--shard",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="The most pictures in a shard.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many processes encode; they share the cores. [default: 1; with --ray, as many as there is room for]",
)
@click.option(
    "--ray",
    is_flag=False,
    flag_value="",
    metavar="[ADDRESS]",
    help="Encode on a Ray cluster: the one at this address, host:port or auto, the one of RAY_ADDRESS, or one that "
    "is started on this machine.",
)
@click.option(
    "--column", default="image", show_default=True, metavar="NAME", help="The column of pictures in parquet files."
)
@memory_option
@json_option
def cache(
    bundle: Path,
    source: Path,
    out: Path,
    buckets: int | None,
    bucket_step: int | None,
    size: tuple[int, int] | None,
    no_resize: bool,
    crop: Any,
    seed: int,
    flip: bool,
    background: tuple[int, int, int] | None,
    dtype: Any,
    shard: int,
    workers: int | None,
    ray: str | None,
    column: str,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Encode the pictures of a data set into a cache of latents.

    SOURCE is a folder, with all folders in it, a list of files (.txt or .lst), a webdataset tar file, or a parquet
    file, which needs the extra [data]. vd.LatentCache reads the cache.

    After a stop of any kind, the same command goes on where the run was; once all is done, it does nothing. Pictures
    that cannot be read are named in CACHE/failed.jsonl, each with its reason; the others are encoded, and the exit code
    is 2.

    --ray needs the extra [ray], and the bundle, SOURCE and CACHE under the same paths on all machines. Give it last, or
    as --ray=ADDRESS.

    --json prints the cache, its VAE and identity; pictures, shards and made (the shards that this run made), failures,
    each with key and reason, and seconds.

    \b
    Example:
      vaedeploy cache mse840k photos -o latents --buckets 512
      vaedeploy cache mse840k shards/0001.tar -o latents --size 512x512 --flip --dtype bfloat16
      vaedeploy cache /nfs/mse840k /nfs/photos -o /nfs/latents --buckets 1024 --ray 10.0.0.1:6379
    """
    from vaedeploy.pipeline.cache import cache_latents

    if (buckets is not None) + (size is not None) + no_resize != 1:
        raise click.UsageError("Give one of --buckets, --size and --no-resize.")
    if bucket_step is not None and buckets is None:
        raise click.UsageError("--bucket-step needs --buckets.")
    with progress_display() as progress:
        cached = cache_latents(
            bundle,
            source,
            out,
            buckets=buckets,
            size=size,
            step=bucket_step,
            crop=crop,
            seed=seed,
            flip=flip,
            background=background,
            dtype=dtype,
            shard=shard,
            workers=workers,
            ray=False if ray is None else ray or True,
            column=column,
            options={"max_memory": max_memory},
            progress=progress,
        )
    if as_json:
        from vaedeploy.images.latent_cache import LatentCache

        info = LatentCache(out).info
        terminal.show_json(
            {
                "cache": str(cached.path),
                "vae": info.vae,
                "identity": info.identity,
                "pictures": cached.pictures,
                "shards": cached.shards,
                "made": cached.made,
                "failures": cached.failures,
                "seconds": cached.seconds,
            }
        )
    else:
        terminal.show(str(cached.path))
        terminal.note(
            f"{counted(cached.pictures, 'picture')} in {counted(cached.shards, 'shard')}, {cached.made:,} of them made "
            f"now; {counted(len(cached.failures), 'picture')} failed"
        )
    cached.check()


@cli.command()
@click.argument("cache", type=PATH)
@out_option("DIR", "The folder to write to; it is made.", required=True)
@click.option(
    "--to",
    "form",
    required=True,
    type=OneOf(["kohya-sd", "kohya-sdxl", "kohya-sd3", "kohya-flux", "webdataset", "files"]),
    help="What to write: kohya's .npz files, to lie beside the pictures; webdataset tar files; or a latent file of "
    "vaedeploy for each picture.",
)
@click.option("--mean", is_flag=True, help="Write the mean of each distribution instead of a sample.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The seed of the samples.")
def recast(cache: Path, out: Path, form: Any, mean: bool, seed: int) -> None:
    """Write a cache of latents as trainers read it.

    \b
    Example:
      vaedeploy recast latents --to kohya-sdxl -o photos
    """
    from vaedeploy.pipeline.recast import recast_cache

    with progress_display() as progress:
        written = recast_cache(cache, out, form, sample=not mean, seed=seed, progress=progress)
    terminal.show(str(out))
    terminal.note(f"{counted(len(written), 'file')} written")
