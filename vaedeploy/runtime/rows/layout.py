"""What the pieces of a half take at one size: which are run for which rows, what is stored meanwhile, and how long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from functools import cached_property

from vaedeploy.bundle.rows import Cut, Piece, RowsTable

__all__ = ["OVERHEAD", "SCORES", "Layout"]

WORK = 160 * 2**20
"""Bytes that one strip may take where memory is not short. Larger strips are no faster."""

HALO_SHARE = 32
"""A strip is this many times as high as its halo, where memory is not short: 2/32 of the rows are computed again."""

LARGE = 2**30
"""Bytes that a strip may take for that."""

SCORES = 2 * 64 * 2**20
"""Bytes that attention takes beside what counts with the image's size: a block of scores, and its softmax."""

OVERHEAD = 48 * 2**20
"""Bytes that a call takes whatever the size: sessions, and what the allocator keeps."""

ARENA, ARENAS = 2.0, 2.75
"""What ONNX Runtime takes for tensors that need 1, in one session and in several: its arena grows by doubling, and what
a session gives is copied. At most this was measured.
"""

FAR = 1 << 40
"""A row so far from any border that no halo reaches one."""

WEIGHTS = 3
"""How often the weights of an open piece are in memory: as read, in the session, and in the order of its kernels."""


class Layout:
    """A table at one size of the latent, with the cuts that are virtual.

    Sizes: ``rows`` and ``columns`` of the latent. Rows of a cut are counted in the cut's own rows.
    """

    def __init__(self, table: RowsTable, rows: int, columns: int, virtual: frozenset[str] = frozenset()) -> None:
        self.table, self.rows, self.columns, self.virtual = table, rows, columns, virtual
        self.cuts: Mapping[str, Cut] = {cut.name: cut for cut in table.cuts}
        self.piece_of: Mapping[str, Piece] = {name: piece for piece in table.pieces for name in piece.targets}
        self._behind = _behind(table)
        self._trees: dict[tuple[int, frozenset[str], int], list[tuple[Piece, int, int]]] = {}

    def with_virtual(self, virtual: frozenset[str]) -> Layout:
        """The same with other virtual cuts. What was found out about pieces that read none of them is not lost."""
        other = copy(self)
        other.virtual = virtual
        for name in ("steps", "_reads", "last_read", "stored_bytes"):
            other.__dict__.pop(name, None)
        return other

    def height(self, cut: Cut) -> int:
        """How many rows a cut has."""
        return self.rows * (cut.scale or 1)

    def bytes(self, name: str) -> int:
        return self.cuts[name].bytes_at(self.rows, self.columns)

    def is_stored(self, name: str) -> bool:
        return name not in self.virtual

    def runs(self, piece: Piece) -> bool:
        """Whether a piece has a turn of its own, and is not only run for rows that others read."""
        targets = [self.cuts[name] for name in piece.targets]
        return any(self.is_stored(cut.name) or cut.norms for cut in targets)

    @cached_property
    def steps(self) -> list[Piece]:
        """The pieces that have a turn, in order."""
        return [piece for piece in self.table.pieces if self.runs(piece)]

    def source_rows(self, piece: Piece, cut: Cut, first: int, last: int) -> tuple[int, int]:
        """The rows of a source that ``piece`` takes to compute its steps [first, last), as if there were no border."""
        each = (cut.scale or 1) // piece.steps
        return (first - piece.halo) * each, (last + piece.halo) * each

    def inside(self, cut: Cut, low: int, high: int) -> tuple[int, int]:
        """Those of the rows [low, high) that a cut has."""
        return max(0, low), min(self.height(cut), high)

    def row_elements(self, cut: Cut) -> int:
        """How many elements along its axis a row of a cut is: the positions of a row, or 1."""
        assert cut.axis is not None
        size = cut.shape[cut.axis]
        return size.factor * self.columns // (cut.scale or 1) if size.columns else 1

    def steps_of(self, piece: Piece, cut: Cut, low: int, high: int) -> tuple[int, int]:
        """The steps of ``piece`` that give at least rows [low, high) of its target ``cut``."""
        each = (cut.scale or 1) // piece.steps
        return low // each, -(-high // each)

    def tree(self, piece: Piece, first: int, last: int) -> Iterator[tuple[Piece, int, int]]:
        """Each piece that is run to compute steps [first, last) of ``piece``, as if there were no border, with its
        steps: it itself, and those of virtual cuts that it reads.
        """
        yield piece, first, last
        for name in piece.strips:
            if name in self.virtual:
                cut, below = self.cuts[name], self.piece_of[name]
                yield from self.tree(below, *self.steps_of(below, cut, *self.source_rows(piece, cut, first, last)))

    def far_tree(self, piece: Piece, height: int) -> list[tuple[Piece, int, int]]:
        """``tree`` for ``height`` steps from FAR on, where rows above and below are counted without a border."""
        key = id(piece), self.virtual & self._behind[id(piece)], height
        if key not in self._trees:
            self._trees[key] = list(self.tree(piece, FAR, FAR + height))
        return self._trees[key]

    def reads(self, piece: Piece) -> Mapping[str, bool]:
        """The stored cuts that are read when ``piece`` has its turn, and whether any is read whole."""
        found: dict[str, bool] = {}
        for below, *_ in self.far_tree(piece, 1):
            for name in below.whole:
                found[name] = True
            for name in below.strips:
                if name not in self.virtual:
                    found.setdefault(name, False)
        return found

    @cached_property
    def _reads(self) -> list[Mapping[str, bool]]:
        return [self.reads(piece) for piece in self.steps]

    @cached_property
    def last_read(self) -> Mapping[str, int]:
        """Stored cut -> the index of the last turn that reads it."""
        return {name: index for index, names in enumerate(self._reads) for name in names}

    def dying(self, index: int) -> list[str]:
        """The cuts that nobody reads after this turn, but for what the caller gave."""
        return [n for n in self._reads[index] if self.last_read[n] == index and n != self.table.input]

    def overwritten(self, index: int) -> str | None:
        """The dying cut over which a turn writes its result, strip after strip; None if there is none that fits."""
        piece = self.steps[index]
        (name, *more) = piece.targets
        if more or name in self.virtual or name in self.table.outputs or self.cuts[name].axis is None:
            return None
        target = self.cuts[name]
        for source in self.dying(index):
            cut = self.cuts[source]
            alike = (cut.shape, cut.axis, cut.dtype) == (target.shape, target.axis, target.dtype)
            if alike and not self._reads[index][source]:
                return source
        return None

    @cached_property
    def stored_bytes(self) -> list[int]:
        """Bytes that are stored while each turn runs."""
        live: dict[str, int] = {}
        found = []
        for index, piece in enumerate(self.steps):
            new = {n: self.bytes(n) for n in piece.targets if n not in self.virtual and n not in self.table.outputs}
            extra = 0 if self.overwritten(index) else sum(new.values())
            found.append(sum(live.values()) + extra)
            for name in self.dying(index):
                live.pop(name, None)
            live.update({name: size for name, size in new.items() if name in self.last_read})
        return found

    def least_height(self, piece: Piece) -> int:
        """The fewest steps that a strip of ``piece`` has.

        Attention has strips of one height, whatever the memory: as many queries as one block of scores has. ONNX
        Runtime's products of 48 and of 384 rows differ by their last bit.
        """
        if piece.quadratic:
            row = self.rows * self.columns**2 * 4
            return min(self.all_steps(piece), max(1, SCORES // 2 // row))
        return min(self.all_steps(piece), max(1, self.total_halo(piece)))

    def all_steps(self, piece: Piece) -> int:
        """How many steps ``piece`` takes for the whole image; 1 for a piece that computes no rows."""
        return self.rows * piece.steps if self.cuts[piece.targets[0]].axis is not None else 1

    def total_halo(self, piece: Piece) -> int:
        """Steps of ``piece`` above a strip that are computed again, with what virtual cuts add to them."""
        return max(
            -(-(FAR * below.steps - (first - below.halo) * piece.steps) // below.steps)
            for below, first, _ in self.far_tree(piece, 1)
        )

    def work(self, index: int, height: int) -> int:
        """Bytes that a turn takes beside what is stored, in strips of ``height`` steps."""
        piece, total, pairs = self.steps[index], OVERHEAD, 0
        if self.cuts[piece.targets[0]].axis is None:
            work = int(piece.work * self.rows * self.columns * ARENA)
            return total + work + sum(weight.bytes for weight in piece.weights) * WEIGHTS
        tree = self.far_tree(piece, height)
        arena = ARENA if len(tree) == 1 else ARENAS
        for below, first, last in tree:
            steps = min(last - first + 2 * below.halo, self.rows * below.steps)
            total += int(below.work * steps * self.columns * arena)
            total += sum(weight.bytes for weight in below.weights) * WEIGHTS
            pairs += below.quadratic
        if source := self.overwritten(index):
            cut = self.cuts[source]
            total += self.total_halo(piece) * (cut.scale or 1) // piece.steps * self.bytes(source) // self.height(cut)
        return total + (min(SCORES, 8 * (self.rows * self.columns) ** 2) if pairs else 0)

    def best_height(self, index: int, room: int) -> int:
        """How many steps a strip of a turn has where ``room`` bytes are left for its work."""
        piece = self.steps[index]
        least, most = self.least_height(piece), self.all_steps(piece)
        if piece.quadratic:
            return least
        more = min(most, least + 64)
        each = -(-(self.work(index, more) - self.work(index, least)) // max(1, more - least)) or 1
        wanted = max(min(HALO_SHARE * self.total_halo(piece), LARGE // each), WORK // each, least)
        affordable = least + max(0, room - self.work(index, least)) // each
        height = min(wanted, affordable, most)
        while height > least and (excess := self.work(index, height) - room) > 0:
            height = max(least, height - max(1, excess // each))
        # Strips of one height, and none of a few rows at the end.
        return max(least, -(-most // -(-most // height)))

    def operations(self, heights: Mapping[int, int] | None = None) -> float:
        """Operations of all turns. heights: of their strips, for what halos cost; without them halos cost nothing."""
        return sum(self.turn_operations(i, None if heights is None else heights[i]) for i in range(len(self.steps)))

    def turn_operations(self, index: int, height: int | None = None) -> float:
        """Operations of one turn, in strips of ``height`` steps; None for one strip."""
        piece, area, total = self.steps[index], self.rows * self.columns, 0.0
        cut = height is not None and height < self.all_steps(piece)
        height = self.all_steps(piece) if height is None else height
        for below, first, last in self.far_tree(piece, height):
            share = (last - first + 2 * below.halo) * piece.steps / (height * below.steps) if cut else 1.0
            total += (below.operations * area + below.quadratic * area**2) * share
        return total


def _behind(table: RowsTable) -> dict[int, frozenset[str]]:
    """The id of each piece -> the cuts that it reads by strips, and those that these are computed from by strips."""
    found: dict[int, frozenset[str]] = {}
    of_cut: dict[str, frozenset[str]] = {}
    for piece in table.pieces:
        names = frozenset(piece.strips).union(*(of_cut.get(name, ()) for name in piece.strips))
        found[id(piece)] = names
        of_cut.update(dict.fromkeys(piece.targets, names))
    return found
