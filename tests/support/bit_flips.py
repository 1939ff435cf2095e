"""Files with one bit flipped, as a worn disk or a bad cable gives them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file in place, as a disk does."""
    with path.open("rb+") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Context in which the file has that bit flipped."""
    flip(path, bit)
    try:
        yield
    finally:
        flip(path, bit)


def some_bits(path: Path, count: int, seed: int) -> list[int]:
    """Different bits of a file; all of them where it has no more than ``count``."""
    bits = range(8 * path.stat().st_size)
    return random.Random(seed).sample(bits, min(count, len(bits)))
