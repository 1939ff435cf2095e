"""The pieces of a half at one size: which are run for which rows, what is stored meanwhile, and how long."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

from vaedeploy.bundle.rows import Cut, Piece, RowsTable
from vaedeploy.runtime.rows.store import GIVES_BACK

__all__ = ["FAR", "Layout", "Turn"]

PieceState = tuple[int, frozenset[str]]
"""The id of a piece, and the virtual cuts that it gives or that its chain computes."""

Found = TypeVar("Found")

FAR = 1 << 40
"""A row so far from any border that no halo reaches one."""


@dataclass(frozen=True)
class Turn:
    """One piece, run strip after strip for all rows.

    reads: the stored cuts that ``piece`` and the pieces of virtual cuts read, and whether any of them reads the cut
    whole. dying: those that no later turn reads, except what the caller gave. over: the dying cut that the result
    overwrites; None if none fits. given_back: the dying cuts whose memory is given back row by row.
    """

    piece: Piece
    reads: Mapping[str, bool]
    dying: tuple[str, ...]
    over: str | None
    given_back: tuple[str, ...]


class Layout:
    """A table at one size of the latent, with the cuts that are virtual.

    Sizes: ``rows`` and ``columns`` of the latent. Rows of a cut are counted in the cut's own rows. on_disk: whether
    cuts are stored in files, except those that a piece reads whole. gives_back: see ``Arrays``.
    """

    def __init__(
        self,
        table: RowsTable,
        rows: int,
        columns: int,
        virtual: frozenset[str] = frozenset(),
        on_disk: bool = False,
        gives_back: bool = GIVES_BACK,
    ) -> None:
        self.table, self.rows, self.columns, self.virtual, self.on_disk = table, rows, columns, virtual, on_disk
        self._gives_back = gives_back
        self.cuts: Mapping[str, Cut] = {cut.name: cut for cut in table.cuts}
        self.piece_of: Mapping[str, Piece] = {name: piece for piece in table.pieces for name in piece.targets}
        self._bytes = {cut.name: cut.bytes_at(rows, columns) for cut in table.cuts}
        self._order = {id(piece): index for index, piece in enumerate(table.pieces)}
        self._found: dict[Hashable, Any] = {}

    def with_virtual(self, virtual: frozenset[str]) -> Layout:
        """The same with other virtual cuts. The two share what ``once`` found."""
        other = copy(self)
        other.virtual = virtual
        for name in ("turns", "read", "_states"):
            other.__dict__.pop(name, None)
        return other

    def height(self, cut: Cut) -> int:
        """How many rows a cut has."""
        return self.rows * (cut.scale or 1)

    def bytes(self, name: str) -> int:
        """Bytes of a cut."""
        return self._bytes[name]

    def is_stored(self, name: str) -> bool:
        """Whether a cut is stored between turns: not if it is virtual, or a result."""
        return name not in self.virtual and name not in self.table.outputs

    def is_file(self, name: str) -> bool:
        """Whether a cut is stored in a file: not if it is given, a result, read whole, or without rows."""
        return self.on_disk and name not in self._in_memory and self.cuts[name].axis is not None

    @cached_property
    def _in_memory(self) -> frozenset[str]:
        whole = (name for piece in self.table.pieces for name in piece.whole)
        return frozenset((self.table.input, *self.table.outputs, *whole))

    def runs(self, piece: Piece) -> bool:
        """Whether a piece has a turn of its own, and is not only run for rows that others read."""
        targets = [self.cuts[name] for name in piece.targets]
        return any(cut.name not in self.virtual or cut.norms for cut in targets)

    def source_rows(self, piece: Piece, cut: Cut, first: int, last: int) -> tuple[int, int]:
        """The rows of a source that ``piece`` takes to compute its steps [first, last), as if there were no border."""
        each = piece.rows_of_step(cut)
        return (first - piece.halo) * each, (last + piece.halo) * each

    def inside(self, cut: Cut, low: int, high: int) -> tuple[int, int]:
        """Those of the rows [low, high) that a cut has."""
        return max(0, low), min(self.height(cut), high)

    def row_elements(self, cut: Cut) -> int:
        """How many elements along its axis a row of a cut has: the positions of a row, or 1."""
        assert cut.axis is not None
        size = cut.shape[cut.axis]
        return size.factor * self.columns // (cut.scale or 1) if size.columns else 1

    def steps_of(self, piece: Piece, cut: Cut, low: int, high: int) -> tuple[int, int]:
        """The steps of ``piece`` that give at least rows [low, high) of its target ``cut``."""
        each = piece.rows_of_step(cut)
        return low // each, -(-high // each)

    def chain(self, piece: Piece, first: int, last: int) -> list[tuple[Piece, int, int]]:
        """The pieces that are run to compute steps [first, last) of ``piece``, as if there were no border, each with
        its steps: those of virtual cuts in the order in which they run, then ``piece`` itself.

        A virtual cut that several of them read is computed once, for all rows that any of them reads.
        """
        needed = {self._order[id(piece)]: (first, last)}
        found = []
        while needed:
            index = max(needed)
            low, high = needed.pop(index)
            below = self.table.pieces[index]
            found.append((below, low, high))
            for name in below.strips:
                if name in self.virtual:
                    cut, source = self.cuts[name], self.piece_of[name]
                    lower, higher = self.steps_of(source, cut, *self.source_rows(below, cut, low, high))
                    known = needed.get(self._order[id(source)], (lower, higher))
                    needed[self._order[id(source)]] = min(lower, known[0]), max(higher, known[1])
        return found[::-1]

    def far_chain(self, piece: Piece, height: int) -> list[tuple[Piece, int, int]]:
        """``chain`` for ``height`` steps from FAR on, where rows above and below are counted without a border."""
        return self.once("chain", piece, partial(self.chain, piece, FAR, FAR + height), height)

    def once(self, name: str, piece: Piece, find: Callable[[], Found], *more: Hashable) -> Found:
        """``find()``, where it depends on ``state(piece)`` and ``more`` alone: found once for all layouts of the table
        and size. Thousands of them are tried for a plan, and each differs from another by a few cuts.
        """
        key = name, self.state(piece), *more
        if key not in self._found:
            self._found[key] = find()
        found: Found = self._found[key]
        return found

    def state(self, piece: Piece) -> PieceState:
        """What the chain of a piece depends on, and what follows from it: two layouts of a table and a size in which
        it is the same have the same chain.
        """
        return self._states[id(piece)]

    @cached_property
    def _states(self) -> Mapping[int, PieceState]:
        found: dict[int, PieceState] = {}
        for piece in self.table.pieces:
            behind = (found[id(self.piece_of[name])][1] for name in piece.strips if name in self.virtual)
            found[id(piece)] = id(piece), self.virtual.intersection(piece.targets).union(*behind)
        return found

    def all_steps(self, piece: Piece) -> int:
        """How many steps ``piece`` takes for the whole image; 1 for a piece that computes no rows."""
        return self.rows * piece.steps if self.cuts[piece.targets[0]].axis is not None else 1

    def total_halo(self, piece: Piece) -> int:
        """Steps of ``piece`` above a strip that are computed again, with what virtual cuts add to them."""
        return self.once("halo", piece, partial(self._total_halo, piece))

    def _total_halo(self, piece: Piece) -> int:
        return max(
            -(-(FAR * below.steps - (first - below.halo) * piece.steps) // below.steps)
            for below, first, _ in self.far_chain(piece, 1)
        )

    @cached_property
    def turns(self) -> list[Turn]:
        """The turns, in order."""
        pieces = [piece for piece in self.table.pieces if self.runs(piece)]
        reads = [self.once("reads", piece, partial(self._reads_of, piece)) for piece in pieces]
        last_read = {name: index for index, names in enumerate(reads) for name in names}
        found = []
        for index, (piece, names) in enumerate(zip(pieces, reads, strict=True)):
            dying = tuple(name for name in names if last_read[name] == index and name != self.table.input)
            over = self._over(piece, [name for name in dying if not names[name]])
            back = (n for n in dying if self._gives_back and n != over and not self.is_file(n) and not names[n])
            found.append(Turn(piece, names, dying, over, tuple(back)))
        return found

    @cached_property
    def read(self) -> frozenset[str]:
        """The stored cuts that any turn reads."""
        return frozenset(name for turn in self.turns for name in turn.reads)

    def _reads_of(self, piece: Piece) -> Mapping[str, bool]:
        found: dict[str, bool] = {}
        for below, *_ in self.far_chain(piece, 1):
            for name in below.whole:
                found[name] = True
            for name in below.strips:
                if name not in self.virtual:
                    found.setdefault(name, False)
        return found

    def _over(self, piece: Piece, dying: Sequence[str]) -> str | None:
        (name, *more) = piece.targets
        target = self.cuts[name]
        if more or target.axis is None or not self.is_stored(name):
            return None
        for source in dying:
            cut = self.cuts[source]
            if (cut.shape, cut.axis, cut.dtype) == (target.shape, target.axis, target.dtype):
                return source
        return None
