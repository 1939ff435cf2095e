"""Chooses the engine for an image size and a batch, and cuts a batch that no engine takes whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from operator import itemgetter

from vaedeploy.bundle import Bundle
from vaedeploy.errors import SizeError
from vaedeploy.values.interface import Interface, Tensor
from vaedeploy.values.kinds import Backend, Part
from vaedeploy.values.shapes import ShapeSet, size_text


@dataclass(frozen=True)
class Slot:
    """One optimisation profile of one engine: the engine's file in the bundle, the profile's number, and its range of
    sizes.
    """

    engine: str
    index: int
    shape: ShapeSet


@dataclass(frozen=True)
class Piece:
    """Items ``start`` to ``stop`` of a batch, ``stop`` excluded, and the slot that runs them."""

    start: int
    stop: int
    slot: Slot


def tightest(slots: Sequence[Slot], batch: int, height: int, width: int) -> Slot | None:
    """The slot that holds this size and the fewest others; None if no slot holds it. The tighter a range, the faster
    its kernels. Of equally tight slots, the first is taken.
    """
    holding = [slot for slot in slots if slot.shape.holds(batch, height, width)]
    return min(holding, key=lambda slot: slot.shape.extent, default=None)


def cut(slots: Sequence[Slot], batch: int, height: int, width: int) -> list[Piece]:
    """Cut ``batch`` items of ``height`` x ``width`` pixels into as few pieces as possible, the largest first, each with
    its tightest slot.

    Raises SizeError, naming the ranges of ``slots``, if the batch cannot be cut so that a slot holds each piece.
    """
    largest = min(batch, max((slot.shape.at("max")[0] for slot in slots), default=0))
    fitting = {n: slot for n in range(largest, 0, -1) if (slot := tightest(slots, n, height, width)) is not None}
    # By number of items: how few pieces they take (inf where none do), and the size of one of those pieces.
    fewest: list[tuple[float, int]] = [(0, 0)]
    for count in range(1, batch + 1):
        ways = ((fewest[count - n][0] + 1, n) for n in fitting if n <= count)
        fewest.append(min(ways, key=itemgetter(0), default=(inf, 0)))
    if fewest[batch][0] == inf:
        ranges = ", ".join(dict.fromkeys(str(slot.shape) for slot in slots))
        raise SizeError(
            f"no engine takes {size_text(batch, height, width)} (batch x height x width, in pixels); there are: "
            f"{ranges or 'none'}"
        )
    sizes: list[int] = []
    left = batch
    while left:
        sizes.append(fewest[left][1])
        left -= sizes[-1]
    ends = list(accumulate(sorted(sizes, reverse=True)))
    starts = [0, *ends[:-1]]
    return [Piece(start, stop, fitting[stop - start]) for start, stop in zip(starts, ends, strict=True)]


KEPT_ROUTES = 256
"""How many routes are cached: finding one takes longer than everything else that the runtime does around a call."""


@dataclass(frozen=True)
class Half:
    """One half of a bundle, and the files in the bundle of its engines that fit this GPU.

    only: the number of the one optimisation profile to use; None uses all.
    """

    bundle: Bundle
    part: Part
    backend: Backend
    engines: tuple[str, ...]
    only: int | None = None

    @property
    def slots(self) -> list[Slot]:
        """The optimisation profiles of all engines: every one, or only number ``only`` of each."""
        infos = ((name, self.bundle.manifest.engines[name]) for name in self.engines)
        return [
            Slot(name, index, shape)
            for name, info in infos
            for index, shape in enumerate(info.identity.shapes.values())
            if self.only in (None, index)
        ]

    @property
    def interface(self) -> Interface:
        """The half's input and outputs."""
        return self.bundle.manifest.interface(self.part)


@dataclass(frozen=True)
class Route:
    """How a batch of one size runs: the outputs of the whole batch, and its pieces, each with the piece's outputs."""

    outputs: Mapping[str, Tensor]
    pieces: Sequence[tuple[Piece, Mapping[str, Tensor]]]


def find_route(half: Half, slots: Sequence[Slot], batch: int, height: int, width: int) -> Route:
    """The route of a batch of ``height`` x ``width`` pixels. Raises SizeError if ``slots`` do not take that size."""
    gives = half.interface.gives
    pieces = [(p, gives(p.stop - p.start, height, width)) for p in cut(slots, batch, height, width)]
    return Route(gives(batch, height, width), pieces)
