"""Data sets to latents, once: what ``vaedeploy cache`` does.

The design:

1. ``sources`` finds pictures: a key, a place in a file, and the file's size and time.
2. ``plan`` reads the size of each from its header, lets ``images.sizing`` choose what to do with it, and sorts pictures
by size into shards. A shard's name is a hash of all that goes in: keys, stamps, fits, the VAE and the options.
3. ``shards`` makes one: encode, write under another name, fsync, rename. One that is there is never made again, and its
   bytes follow from its name. So a job may be killed at any moment, or run twice, or by several processes. Threads of
   ``reading`` read and resize its pictures meanwhile, and then those of the next shard.
4. A picture that fails is named in the header of its shard, or, where its header cannot be read, by the plan.
5. ``workers`` are processes with a VAE each, and ``ray_job`` has actors on the machines of a ``cluster`` of Ray; they
   are given shards, by ``turns``, and say when one is done.
6. ``cache.json`` comes first and says whose latents these are: another VAE and other options are refused.
7. ``index.json`` and ``failed.jsonl`` come last, and follow from the plan and the headers of the shards alone.
8. ``folder`` has 6 and 7. ``images.cache_format`` has the files, and ``images.latent_cache`` reads them for training.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.stored import refuse_in_bundle
from vaedeploy.errors import InputError
from vaedeploy.images.cache_format import FAILED, SHARDS, CacheInfo, DType, FailedPicture, check_dtype
from vaedeploy.images.opacity import check_background
from vaedeploy.images.sizing import Crop, Size, Sizing
from vaedeploy.pipeline.cache.cluster import check_address
from vaedeploy.pipeline.cache.folder import PAUSE, check_whose, claim, sweep, write_index
from vaedeploy.pipeline.cache.plan import Plan, Shard, make_plan
from vaedeploy.pipeline.cache.ray_job import ray_work
from vaedeploy.pipeline.cache.reading import Reader
from vaedeploy.pipeline.cache.shards import is_free, make_shard, shard_done
from vaedeploy.pipeline.cache.workers import Work, cores_of, shared, work_on
from vaedeploy.runtime import VAE
from vaedeploy.runtime.unverified import warn_of_unverified
from vaedeploy.system.interrupts import stop_if_interrupted
from vaedeploy.system.places import is_folder
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.latent import RGBA
from vaedeploy.values.words import counted

COLUMN = "image"
"""The column of pictures in parquet files, as data sets of the Hugging Face hub call it."""

SHARD = 64
"""Pictures in a shard, which is the most that a killed worker has to do again. At one megapixel that is 17 MB with 4
channels in float16, and some minutes of two CPU cores.
"""


@dataclass(frozen=True)
class Cached:
    """What ``cache_latents`` did. path: the cache's. pictures, shards: how many it has. made: shards that this run
    made.

    failures: the pictures that are not in it, as in ``failed.jsonl``. seconds: how long the run took.
    """

    path: Path
    pictures: int
    shards: int
    made: int
    failures: tuple[FailedPicture, ...]
    seconds: float

    def check(self) -> None:
        """Raise InputError if there are failures."""
        if self.failures:
            total = self.pictures + len(self.failures)
            raise InputError(
                f"{len(self.failures)} of {counted(total, 'picture')} failed; {self.path / FAILED} has the reason of "
                f"each. The first: {self.failures[0].key}: {self.failures[0].reason}"
            )


def cache_latents(
    bundle: Bundle | str | Path,
    source: str | Path,
    out: str | Path,
    *,
    buckets: int | None = None,
    size: Size | None = None,
    step: int | None = None,
    crop: Crop = "center",
    seed: int = 0,
    flip: bool = False,
    background: tuple[int, int, int] | None = None,
    dtype: DType = "float16",
    shard: int = SHARD,
    workers: int | None = None,
    ray: str | bool = False,
    column: str = COLUMN,
    options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Cached:
    """Encode the pictures of a data set into a cache of latents, or go on with one.

        >>> vd.cache_latents("mse840k", "photos", "latents", buckets=1024).check()
        >>> cache = vd.LatentCache("latents")

    bundle: a bundle, or its path or address. source: a folder, with all folders in it, a list of files (.txt, .lst), a
        tar file or a parquet file. out: the folder of the cache; it is made.
    buckets: bring pictures to the sizes of about buckets x buckets pixels whose sides are multiples of ``step``
        (default: the VAE's factor). size: bring all to this (H, W). With neither, pictures keep their sizes, and are
        padded by reflection to the factor.
    crop: where pictures that are too long are cropped: "center", "corner" (the top left stays) or "random", by
    ``seed``.
    flip: encode each picture mirrored as well. background: RGB, 0 to 255; flatten transparent pictures on it, which
        otherwise fail unless the VAE has opacity.
    dtype: of the stored numbers: "float16", "bfloat16" or "float32". shard: pictures in a shard at most.
    workers: how many processes encode. 1, the default without ``ray``, is this process alone. Several are started by
        spawn: a script that calls this needs ``if __name__ == "__main__":``.
    ray: encode with Ray actors on the cluster at this address, host:port or "auto". True: on the one that RAY_ADDRESS
        names, or on one that is started on this machine and ends with the call. By default there are as many
        ``workers`` as it has room for, with a GPU each where it has any, or up to four cores. All machines must have
        the bundle, the source and ``out`` under the same paths.
    column: the column of parquet files with the pictures: bytes, or a struct with a field ``bytes``. It needs pyarrow.
    options: keyword arguments of ``VAE``. Workers of one machine share its cores, unless ``threads`` says how many each
        takes, and share ``max_memory``, or what is free.

    What is done is not done again, and the files are the same however often a run was stopped.

    Raises InputError for bad arguments and a source without pictures, OutputError for an ``out`` that cannot be written
    to or is a cache of another VAE or of other options, and BundleError and BackendError as ``VAE`` does. Pictures that
    fail are in the result.
    """
    begun = time.monotonic()
    _check(shard, workers, dtype)
    if ray is not False:
        check_address(ray)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest, folder = opened.manifest, Path(out)
    check_background(background, manifest.latent.image_channels == RGBA)
    sizing = Sizing(manifest.latent.sizes, buckets, size, step, crop, seed)
    info = CacheInfo(
        vae=manifest.vae.name,
        identity=manifest.vae.identity,
        latent=manifest.latent,
        precision=manifest.precision,
        dtype=dtype,
        buckets=buckets,
        size=size,
        step=None if buckets is None else sizing.step_of_buckets,
        crop=crop,
        seed=seed,
        flip=flip,
        background=background,
        shard=shard,
    )
    refuse_in_bundle(folder)
    if is_folder(folder):
        check_whose(folder, info)  # before the minutes that finding all pictures may take
    plan = make_plan(Path(source), folder, info, sizing, column, progress)
    claim(folder, info)
    shards = folder / SHARDS
    sweep(shards)
    missing = [shard for shard in plan.shards if shard_done(folder, shard) is None]
    try:
        made = _make(plan, missing, folder, opened, workers, ray, options or {}, progress)
    finally:
        sweep(shards)
    failures = write_index(plan, folder)
    return Cached(
        folder,
        sum(len(shard.pictures) for shard in plan.shards) + len(plan.failed) - len(failures),
        len(plan.shards),
        made,
        failures,
        time.monotonic() - begun,
    )


def _check(shard: int, workers: int | None, dtype: str) -> None:
    for name, value in (("shard", shard), ("workers", 1 if workers is None else workers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; it must be 1 or more")
    check_dtype(dtype)


def _make(
    plan: Plan,
    missing: list[Shard],
    folder: Path,
    bundle: Bundle,
    workers: int | None,
    ray: str | bool,
    options: Mapping[str, Any],
    progress: Progress,
) -> int:
    """Make the missing shards, wait for those that another job makes, and return how many were made here."""
    if not missing:
        return 0
    total = sum(len(shard.pictures) for shard in missing)
    what, done, waiting = f"Encoding {counted(total, 'picture')}", 0, missing
    progress(what, 0, total)
    options = {"identity": plan.info.identity, **options}  # another VAE may have taken the bundle's place by now
    made_here = 0
    with _workers(plan, len(missing), folder, bundle, workers, ray, options, progress) as work:
        while waiting:
            busy: list[Shard] = []
            with closing(work(waiting)) as made:  # whatever is raised, workers end before their leftovers are swept up
                for shard, free in made:
                    if free:
                        made_here += 1
                        done += len(shard.pictures)
                        progress(what, done, total)
                    else:
                        busy.append(shard)
            waiting = _let_go(folder, busy)
            if busy:  # otherwise the last word was that all is done
                done += sum(len(shard.pictures) for shard in busy) - sum(len(shard.pictures) for shard in waiting)
                progress(what, done, total)
    return made_here


@contextmanager
def _workers(
    plan: Plan,
    most: int,
    folder: Path,
    bundle: Bundle,
    workers: int | None,
    ray: str | bool,
    options: Mapping[str, Any],
    progress: Progress,
) -> Iterator[Work]:
    """Context with what makes shards: this process, ``most`` processes or fewer, or a cluster of Ray."""
    if ray is not False:
        warn_of_unverified(bundle)  # once, and not by each worker
        with ray_work(ray, workers, bundle.path, options, folder, plan.info, progress) as work:
            yield work
    elif (count := min(workers or 1, most)) > 1:
        warn_of_unverified(bundle)
        yield partial(
            work_on, count=count, bundle=bundle.path, options=shared(options, count), folder=folder, info=plan.info
        )
    else:
        yield partial(_here, bundle=bundle.path, options=options, folder=folder, info=plan.info)


def _let_go(folder: Path, busy: list[Shard]) -> list[Shard]:
    """Wait until another job has made the shards that it is at work on. Returns those that it left when stopped."""
    while waiting := [shard for shard in busy if shard_done(folder, shard) is None]:
        if any(is_free(folder, shard) for shard in waiting):
            return waiting
        stop_if_interrupted()
        time.sleep(PAUSE)
    return []


def _here(
    shards: list[Shard], bundle: Path, options: Mapping[str, Any], folder: Path, info: CacheInfo
) -> Generator[tuple[Shard, bool], None, None]:
    with VAE(bundle, **options) as vae, Reader(info, cores_of(options)) as reader:
        for shard, following in zip_longest(shards, shards[1:]):
            yield shard, make_shard(vae, folder, info, shard, reader, following)
