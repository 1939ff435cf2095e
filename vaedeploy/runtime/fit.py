"""Which of the ranges of sizes that engines take answers a call, and how a batch is cut that none takes whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vaedeploy.errors import SizeError
from vaedeploy.shapes import ShapeSet


@dataclass(frozen=True)
class Slot:
    """One optimisation profile of one engine: the engine's file in the bundle, the profile's number, and its sizes."""

    engine: str
    index: int
    shape: ShapeSet


@dataclass(frozen=True)
class Piece:
    """Items ``start`` to ``stop`` of a batch, and what answers for them."""

    start: int
    stop: int
    slot: Slot


def tightest(slots: Sequence[Slot], batch: int, height: int, width: int) -> Slot | None:
    """The slot with the fewest other sizes that holds this one; None where none does. The tighter a range, the faster
    its kernels; of equal ones the first is taken.
    """
    holding = [slot for slot in slots if slot.shape.holds(batch, height, width)]
    return min(holding, key=lambda slot: slot.shape.extent, default=None)


def cut(slots: Sequence[Slot], batch: int, height: int, width: int) -> list[Piece]:
    """``batch`` items of that many pixels as pieces, the largest first, each with its tightest slot.

    Raises SizeError, naming the ranges that there are, where a piece has none.
    """
    pieces: list[Piece] = []
    largest = max((slot.shape.at("max")[0] for slot in slots), default=0)
    while (start := pieces[-1].stop if pieces else 0) < batch:
        for size in range(min(batch - start, largest), 0, -1):
            slot = tightest(slots, size, height, width)
            if slot is not None:
                pieces.append(Piece(start, start + size, slot))
                break
        else:
            ranges = ", ".join(dict.fromkeys(str(slot.shape) for slot in slots))
            raise SizeError(
                f"no engine takes {batch - start}x{height}x{width} (batch x height x width, in pixels); there are: "
                f"{ranges or 'none'}"
            )
    return pieces
