"""Small data sets of pictures, and what is in a folder afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(path: Path, height: int = 24, width: int = 40, *, seed: int = 0, mode: str = "RGB", **options: Any) -> Path:
    """A picture of noise at ``path``, whose suffix chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    Image.frombytes(mode, (width, height), pixels.tobytes()).save(path, **options)
    return path


def data_set(folder: Path, count: int, *, sizes: tuple[tuple[int, int], ...] = ((24, 40), (40, 24), (32, 32))) -> Path:
    """A folder of that many pictures, every second one in a folder of its own, whose sizes take turns."""
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        picture(folder / ("more" if number % 2 else ".") / f"{number:03}.png", height, width, seed=number)
    return folder


def count_shards(cache: Path) -> int:
    """How many shards of a cache of latents there are."""
    return len(list(cache.glob("shards/*.safetensors")))


def shard_files(cache: Path) -> set[tuple[str, int]]:
    """The shards of a cache of latents, and the inode of each: one that is made again has another."""
    return {(path.name, path.stat().st_ino) for path in cache.glob("shards/*.safetensors")}


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in a folder, by their path in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
