"""Which of the ranges of sizes that engines take answers a call, and how a batch is cut that none takes whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from vaedeploy.bundle import Bundle
from vaedeploy.errors import SizeError
from vaedeploy.values.interface import Interface, Tensor
from vaedeploy.values.kinds import Backend, Part
from vaedeploy.values.shapes import ShapeSet


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
    """``batch`` items of that many pixels as few pieces, the largest first, each with its tightest slot.

    Raises SizeError, naming the ranges that there are, where it cannot be cut so that each piece has one.
    """
    largest = min(batch, max((slot.shape.at("max")[0] for slot in slots), default=0))
    fitting = {n: slot for n in range(largest, 0, -1) if (slot := tightest(slots, n, height, width)) is not None}
    fewest: list[tuple[int, ...] | None] = [()]  # for each number of items, the sizes of its pieces
    for count in range(1, batch + 1):
        ways = ((n, *rest) for n in fitting if n <= count and (rest := fewest[count - n]) is not None)
        fewest.append(min(ways, key=len, default=None))
    sizes = fewest[batch]
    if sizes is None:
        ranges = ", ".join(dict.fromkeys(str(slot.shape) for slot in slots))
        raise SizeError(
            f"no engine takes {batch}x{height}x{width} (batch x height x width, in pixels); there are: "
            f"{ranges or 'none'}"
        )
    ends = list(accumulate(sorted(sizes, reverse=True)))
    starts = [0, *ends[:-1]]
    return [Piece(start, stop, fitting[stop - start]) for start, stop in zip(starts, ends, strict=True)]


KEPT_ROUTES = 256
"""Sizes whose routes are remembered: finding one takes longer than all else that is done around a call."""


@dataclass(frozen=True)
class Half:
    """One half of a bundle, and the engines for it that fit this GPU: their files in the bundle.

    only: the number of the one optimisation profile to use; None: all.
    """

    bundle: Bundle
    part: Part
    backend: Backend
    engines: tuple[str, ...]
    only: int | None = None

    @property
    def slots(self) -> list[Slot]:
        """Every optimisation profile of every engine, or the chosen one."""
        infos = ((name, self.bundle.manifest.engines[name]) for name in self.engines)
        return [
            Slot(name, index, shape)
            for name, info in infos
            for index, shape in enumerate(info.identity.shapes.values())
            if self.only in (None, index)
        ]

    @property
    def interface(self) -> Interface:
        """What it takes and gives."""
        return self.bundle.manifest.interface(self.part)


@dataclass(frozen=True)
class Route:
    """How a size is answered: every output of the whole, and the pieces of the batch, each with its own outputs."""

    outputs: Mapping[str, Tensor]
    pieces: Sequence[tuple[Piece, Mapping[str, Tensor]]]


def find_route(half: Half, slots: Sequence[Slot], batch: int, height: int, width: int) -> Route:
    """Raises SizeError where ``slots`` do not take that size."""
    gives = half.interface.gives
    pieces = [(p, gives(p.stop - p.start, height, width)) for p in cut(slots, batch, height, width)]
    return Route(gives(batch, height, width), pieces)
