"""Caches of latents as trainers read them: what ``vaedeploy recast`` does.

========== ================================================= ==========================================================
kohya      ``KEY_WWWWxHHHH_sd.npz``, to lie beside pictures  a sample, as sd-scripts keeps it: see ``pipeline.kohya``
webdataset ``000000.tar``, one size each, KEY.npy, KEY.json  a sample as the diffusion model sees it
files      ``KEY.safetensors``, which ``decode`` reads       a sample as the diffusion model sees it; the mirrored one
                                                             in ``KEY.flipped.safetensors``
========== ================================================= ==========================================================
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle.stored import refuse_in_bundle
from vaedeploy.errors import InputError, LatentError, OutputError
from vaedeploy.images.latent_cache import CachedLatent, LatentCache
from vaedeploy.images.latents import LatentFile, latent_bytes
from vaedeploy.pipeline.kohya import KOHYA, check_kohya, kohya_bytes, kohya_name
from vaedeploy.system.atomic import clear_drafts, write_file
from vaedeploy.system.oserrors import reason
from vaedeploy.system.progress import Progress, silent

Format = Literal["kohya-sd", "kohya-sdxl", "kohya-sd3", "kohya-flux", "webdataset", "files"]

Latent = NDArray[np.float32]


def recast_cache(
    cache: LatentCache | str | Path,
    out: str | Path,
    form: Format,
    *,
    sample: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Path]:
    """Write a cache of latents into the folder ``out`` as a trainer reads it, and return the files, in their order.

        >>> vd.recast_cache("latents", "photos", "kohya-sdxl")

    cache: a cache, or its path.
    form: "kohya-sd", "kohya-sdxl", "kohya-sd3" or "kohya-flux", an .npz file for each picture, to lie beside it;
        "webdataset", tar files; "files", a latent file of vaedeploy's for each picture. docs/datasets.md says what is
        in each.
    sample: write a sample of each picture's distribution, drawn from ``seed`` and the picture's key, as trainers do;
    False for the mean.

    Existing files of these names are replaced; those of SD3 and FLUX keep their arrays of other sizes. Raises
    InputError for a form that is unknown or cannot hold this cache, and where two pictures would be written to one
    file; OutputError for an ``out`` that cannot be written to.
    """
    cache = cache if isinstance(cache, LatentCache) else LatentCache(cache)
    if form not in get_args(Format):
        raise InputError(f"form is {form!r}; it must be one of {', '.join(get_args(Format))}")
    folder = Path(out)
    refuse_in_bundle(folder)
    _check_keys(cache)
    take = _taker(sample, seed)
    if form in KOHYA:
        check_kohya(cache, form)
        files = _kohya(cache, take, form, folder)
        names = [(item.key, kohya_name(form, item.key, item.fit.original)) for item in cache.items]
    elif form == "webdataset":
        files, names = _webdataset(cache, take), [(key, _sample_key(key)) for key in cache.keys]
    else:
        endings = ("", ".flipped") if cache.info.flip else ("",)
        files = _files(cache, take, endings)
        names = [(key, _file_name(key, ending)) for key in cache.keys for ending in endings]
    _check_names(names)
    return _write(folder, files, len(cache), f"Writing {len(cache)} latents to {folder}", progress)


Take = Callable[[CachedLatent, bool], Latent]
"""Gives the (C, h, w) float32 to write for a latent, or for the mirrored picture's."""


def _taker(sample: bool, seed: int) -> Take:
    def take(latent: CachedLatent, flipped: bool = False) -> Latent:
        if not sample:
            return latent.flipped[0] if flipped and latent.flipped is not None else latent.mean
        digest = hashlib.sha256(f"{seed}:{flipped}:{latent.key}".encode()).digest()
        return latent.sample(int.from_bytes(digest[:16], "little"), flipped=flipped)

    return take


def _check_keys(cache: LatentCache) -> None:
    for key in cache.keys:
        path = PurePosixPath(key)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise LatentError(f"{cache.path} has a picture {key!r}, whose file would be outside of the folder")


def _check_names(names: list[tuple[str, str]]) -> None:
    """Raise InputError where two pictures have the same name. names: (key, name) of each picture."""
    taken: dict[str, str] = {}
    for key, name in names:
        if name in taken:
            raise InputError(f"{taken[name]} and {key} would both be written as {name}; rename one, and cache again")
        taken[name] = key


def _write(
    folder: Path, files: Iterator[tuple[str, bytes, int]], total: int, what: str, progress: Progress
) -> list[Path]:
    written: list[Path] = []
    done = 0
    progress(what, 0, total)
    for name, data, count in files:
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the folder {path.parent}: {reason(error)}. Choose another place with -o"
            ) from error
        if not written:
            clear_drafts(folder)
        write_file(path, data)
        written.append(path)
        done += count
        progress(what, done, total)
    return written


def _kohya(cache: LatentCache, take: Take, form: str, folder: Path) -> Iterator[tuple[str, bytes, int]]:
    for latent in cache:
        name = kohya_name(form, latent.key, latent.original)
        mirrored = None if latent.flipped is None else take(latent, True)
        yield name, kohya_bytes(form, latent, take(latent, False), mirrored, folder / name), 1


# ---------------------------------------------------------------------------------------------------------- webdataset


def _webdataset(cache: LatentCache, take: Take) -> Iterator[tuple[str, bytes, int]]:
    """Tar files of one shard each, whose pictures have one size."""
    info = cache.info
    kind = np.float16 if info.dtype == "float16" else np.float32
    contract = {"vae": info.vae, "identity": info.identity, "latent": msgspec.to_builtins(info.latent), "raw": False}
    for number, numbers in enumerate(cache.shards):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for latent in map(cache.__getitem__, numbers):
                sizes = {name: getattr(latent, name) for name in ("original", "resized", "crop", "size")}
                members = {"npy": _npy(take(latent, False).astype(kind))}
                if latent.flipped is not None:
                    members["flipped.npy"] = _npy(take(latent, True).astype(kind))
                members["json"] = msgspec.json.encode({"key": latent.key, **sizes, **contract})
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{_sample_key(latent.key)}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        yield f"{number:06d}.tar", data.getvalue(), len(numbers)


def _sample_key(key: str) -> str:
    """A key without dots: webdataset takes what follows the first dot of a name as the file's type."""
    return key.replace(".", "_")


def _npy(array: NDArray[Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


# --------------------------------------------------------------------------------------------------------------- files


def _files(cache: LatentCache, take: Take, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes, int]]:
    info = cache.info
    for latent in cache:
        for number, ending in enumerate(endings):
            file = LatentFile(take(latent, bool(ending))[None], info.identity, info.vae, info.latent, latent.size)
            yield _file_name(latent.key, ending), latent_bytes(file), int(number == 0)


def _file_name(key: str, ending: str) -> str:
    return f"{key}{ending}.safetensors"
