"""Measure ``vaedeploy cache``. BUNDLE is a bundle, PHOTOS a folder of photographs, of which pieces are cut out.

    python benchmarks/cache.py busy BUNDLE PHOTOS --pictures 24 --size 256 --json FILE
    python benchmarks/cache.py many BUNDLE PHOTOS --pictures 1000 --size 128 --rounds 3 --json FILE
    python benchmarks/cache.py memory BUNDLE PHOTOS --pictures 10000 --size 64 --json FILE
    python benchmarks/cache.py disk BUNDLE PHOTOS --pictures 24 --size 512 --json FILE

busy: the share of time, from the beginning of the encoder's first call to the end of its last, that is spent inside
    these calls. One process; JPEG files of 1248x832, one megapixel, are brought to squares of ``--size``. With a small
    ``--shard``, the encoder's waiting between shards is part of it.
many: the wall time of ``cache_latents`` by one process, and by two, over that of the bare loop that a user would write:
    read, resize, ``encode_moments``, keep as float16. They take turns, and the ratio is taken turn by turn. Each opens
    the bundle; the cache is on the disk at the end, and the loop's latents are in memory. The JPEG files are half as
    large again as ``--size``.
memory: resident MB after every tenth of the pictures, one process.
disk: bytes of the cache over those of the pictures, JPEG files of ``--size`` with quality 90, for each type of number.

``processor s`` is the time of the processors, of all processes. ``load`` is the machine's, of the last minute: with
other work on it, wall times say little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
from PIL import Image, ImageOps

import vaedeploy as vd
from vaedeploy.images.cache_format import DType
from vaedeploy.images.files import files_in, image_suffixes
from vaedeploy.pipeline import cache
from vaedeploy.system.machine import cpu_name, usable_cores

MEGAPIXEL = (1248, 832)
"""Width and height."""

TENTHS = 10


def write_pictures(photos: Path, folder: Path, count: int, size: tuple[int, int]) -> Path:
    """A folder of JPEG files of ``size`` (W, H), each a piece of a photograph, up to twice as large where that is."""
    opened = [Image.open(path).convert("RGB") for path in files_in(photos, image_suffixes())]
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        photo = opened[number % len(opened)]
        wide, high = (min(side, int(out * random.uniform(1, 2))) for side, out in zip(photo.size, size, strict=True))
        left, top = random.integers(photo.width - wide + 1), random.integers(photo.height - high + 1)
        piece = photo.crop((left, top, left + wide, top + high))
        ImageOps.fit(piece, size, Image.Resampling.LANCZOS).save(folder / f"{number:05}.jpg", quality=90)
    return folder


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def processor_seconds() -> float:
    """Of this process, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Told(vd.VAE):
    """A VAE that notes when each call of its encoder began and ended."""

    calls: ClassVar[list[tuple[float, float]]] = []

    def encode_moments(self, *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return super().encode_moments(*arguments, **options)
        finally:
            self.calls.append((began, time.perf_counter()))


def busy(bundle: Path, photos: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    source = write_pictures(photos, folder / "photos", args.pictures, MEGAPIXEL)
    cache.VAE = Told  # type: ignore[misc]
    vd.cache_latents(bundle, source, folder / "latents", size=(args.size, args.size), shard=args.shard).check()
    taken = [end - began for began, end in Told.calls]
    whole = Told.calls[-1][1] - Told.calls[0][0]
    return {
        "pictures in a shard": args.shard,
        "share of time in the encoder": round(sum(taken) / whole, 4),
        "s for a call, median": round(statistics.median(taken), 3),
        "s between calls, most": round(max(b[0] - a[1] for a, b in zip(Told.calls, Told.calls[1:], strict=False)), 4),
    }


def bare(bundle: Path, source: Path, side: int) -> list[tuple[Any, Any]]:
    kept = []
    with vd.VAE(bundle) as vae:
        for path in sorted(source.iterdir()):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
            mean, std = vae.encode_moments(pixels)
            kept.append((mean.astype(np.float16), std.astype(np.float16)))
    return kept


def many(bundle: Path, photos: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    larger = args.size * 3 // 2
    source = write_pictures(photos, folder / "photos", args.pictures, (larger, larger))
    size = (args.size, args.size)
    calls: dict[str, Callable[[Path], object]] = {
        "bare loop": lambda out: bare(bundle, source, args.size),
        "one process": lambda out: vd.cache_latents(bundle, source, out, size=size).check(),
        "two processes": lambda out: vd.cache_latents(bundle, source, out, size=size, workers=2).check(),
    }
    walls: dict[str, list[float]] = {name: [] for name in calls}
    processors: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(args.rounds):
        for name in sorted(calls, reverse=bool(turn % 2)):
            began, used = time.perf_counter(), processor_seconds()
            calls[name](folder / f"{name} {turn}")
            walls[name].append(round(time.perf_counter() - began, 2))
            processors[name].append(round(processor_seconds() - used, 2))
            print(name, walls[name][-1], processors[name][-1], f"load {os.getloadavg()[0]:.1f}", flush=True)
    over = {
        f"{name} over the bare loop": [round(a / b, 3) for a, b in zip(walls[name], walls["bare loop"], strict=True)]
        for name in list(calls)[1:]
    }
    return {"wall s": walls, "processor s": processors, **over}


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def memory(bundle: Path, photos: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    source = write_pictures(photos, folder / "photos", args.pictures, (args.size, args.size))
    told: list[float] = []

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("Encoding") and done * TENTHS >= (len(told) + 1) * total:
            told.append(round(resident(), 1))

    vd.cache_latents(bundle, source, folder / "latents", progress=progress).check()
    return {"resident MB after each tenth": told}


def disk(bundle: Path, photos: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    source = write_pictures(photos, folder / "photos", args.pictures, (args.size, args.size))
    told: dict[str, Any] = {"bytes of a picture": bytes_in(source) // args.pictures}
    for dtype in get_args(DType):
        vd.cache_latents(bundle, source, folder / dtype, dtype=dtype).check()
        taken = bytes_in(folder / dtype)
        told[dtype] = {"bytes of a picture": taken // args.pictures, "share": round(taken / bytes_in(source), 3)}
    return told


PARTS = {"busy": busy, "many": many, "memory": memory, "disk": disk}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard", type=int, default=cache.SHARD, help="pictures in a shard, of busy")
    parser.add_argument("--json", type=Path, help="also write the figures to this file, beside those that are there")
    args = parser.parse_args()
    before = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as folder:
        figures = PARTS[args.part](args.bundle, args.photos, Path(folder), args)
    machine = {"cpu": cpu_name(), "cores": usable_cores(), "load": [before, round(os.getloadavg()[0], 1)]}
    asked = {"pictures": args.pictures, "size": args.size, "vae": vd.Bundle.open(args.bundle).manifest.vae.name}
    told = {**asked, **figures, **machine}
    print(json.dumps(told, indent=1))
    if args.json:
        known = json.loads(args.json.read_text()) if args.json.exists() else {}
        args.json.write_text(json.dumps({**known, f"{args.part} {args.size}": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
