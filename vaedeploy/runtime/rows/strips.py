"""Runs the pieces of a half, strip after strip, as a plan says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle.rows import COLUMNS, Cut, Piece
from vaedeploy.runtime.rows.arrays import Array, Arrays, HostArrays
from vaedeploy.runtime.rows.cost import turn_operations
from vaedeploy.runtime.rows.layout import Turn
from vaedeploy.runtime.rows.plan import Plan
from vaedeploy.runtime.rows.store import FileArray, Workspace
from vaedeploy.system.heap import trim_heap

__all__ = ["Run", "RunPiece"]


class RunPiece(Protocol):
    """Runs an open piece: names of outputs, and what it takes by name.

    Statistics and the latent's width are numpy arrays. All else is of the run's ``Arrays``.
    """

    def __call__(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]: ...


Open = Callable[[Sequence[Piece]], AbstractContextManager[Sequence[RunPiece]]]
"""Opens pieces for as long as the context lasts."""


class Run:
    """One item through a half.

    plan: what is stored. open_pieces: opens the pieces that one turn needs. advance: is called after each strip, with
    the share of the work that it was. workspace: where a plan's files are, if it stores any. arrays: makes all arrays.
    """

    def __init__(
        self,
        plan: Plan,
        open_pieces: Open,
        advance: Callable[[float], None] = lambda share: None,
        workspace: Workspace | None = None,
        arrays: Arrays | None = None,
    ) -> None:
        self.plan, self.layout, self._open, self._advance = plan, plan.layout, open_pieces, advance
        self._workspace, self._arrays = workspace, arrays or HostArrays()
        self.table = plan.layout.table
        self.finite = True
        self._stored: dict[str, Array | FileArray] = {}
        self._statistics: dict[str, NDArray[np.float32]] = {}
        self._sessions: dict[int, RunPiece] = {}
        self._over: _Over | None = None
        self._given_back: dict[str, int] = {}
        operations = [turn_operations(self.layout, turn) + 1 for turn in self.layout.turns]
        self._shares = [number / sum(operations) for number in operations]
        self._columns = np.array([plan.layout.columns], np.int64)

    def compute(self, item: Array, results: Mapping[str, Array]) -> None:
        """Fill ``results``, arrays by the names of outputs, from ``item`` (1, ...). ``finite`` then says whether all
        numbers of the first output were.
        """
        self._stored = {self.table.input: item}
        for turn, height, share in zip(self.layout.turns, self.plan.heights, self._shares, strict=True):
            self._turn(turn, height, share, results)

    def _turn(self, turn: Turn, height: int, share: float, results: Mapping[str, Array]) -> None:
        pieces = [piece for piece, _, _ in self.layout.chain(turn.piece, 0, 1)]
        with self._open(pieces) as runners:
            self._sessions = {id(piece): runner for piece, runner in zip(pieces, runners, strict=True)}
            if self.layout.cuts[turn.piece.targets[0]].axis is None:
                self._store_whole(turn.piece)
            else:
                self._strips(turn, height, share, results)
            self._sessions = {}
        for name in turn.dying:
            self._stored.pop(name, None)
        trim_heap()

    def _store_whole(self, piece: Piece) -> None:
        inputs = {name: self._whole(name) for name in (*piece.strips, *piece.whole)}
        for name, array in zip(piece.targets, self._run(piece, piece.targets, inputs), strict=True):
            self._stored[name] = array

    def _strips(self, turn: Turn, height: int, share: float, results: Mapping[str, Array]) -> None:
        layout, piece = self.layout, turn.piece
        targets = [layout.cuts[name] for name in piece.targets]
        places = self._places(turn, targets, results)
        rows: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {cut.name: [] for cut in targets if cut.norms}
        last = layout.all_steps(piece)
        for first in range(0, last, height):
            end = min(last, first + height)
            following = end, min(last, end + height)
            computed = self._compute(piece, first, end)
            kept = self._kept(piece, *following)
            for cut in targets:
                values, *statistics = computed.pop(cut.name)
                each = piece.rows_of_step(cut)
                if cut.name in places:
                    self._write(places[cut.name], cut, first * each, values)
                if cut.name == self.table.outputs[0]:
                    self.finite = self.finite and self._arrays.finite(values)
                if statistics:
                    rows[cut.name].append((statistics[0], statistics[1]))
            del values, statistics
            if self._over is not None:
                self._over.written = end * piece.rows_of_step(self._over.cut)
                self._over.first, self._over.rows = kept
            self._give_back(turn, *following)
            self._advance((end - first) / last * share)
        self._over = None
        self._given_back = {}
        for cut in targets:
            if cut.norms:
                self._combine(cut, rows[cut.name])
            if cut.name in places and cut.name in layout.read:
                self._stored[cut.name] = places[cut.name]

    def _places(self, turn: Turn, targets: Sequence[Cut], results: Mapping[str, Array]) -> dict[str, Array | FileArray]:
        """Where each target is written: what the caller wants, over a cut that dies, or to a new array."""
        places: dict[str, Array | FileArray] = {}
        for cut in targets:
            if cut.name in results:
                places[cut.name] = results[cut.name]
            elif cut.name in self.layout.read:
                if turn.over is not None:
                    self._over = _Over(self.layout.cuts[turn.over])
                    places[cut.name] = self._stored[turn.over]
                else:
                    places[cut.name] = self._empty(cut)
        return places

    def _write(self, place: Array | FileArray, cut: Cut, low: int, values: Array) -> None:
        """Write ``values`` as the rows of a cut from ``low`` on."""
        assert cut.axis is not None
        if isinstance(place, FileArray):
            place.write(cut.axis, low * self.layout.row_elements(cut), values)
        else:
            each = self.layout.row_elements(cut)
            self._arrays.fill(self._part(place, cut, low, low + values.shape[cut.axis] // each), values)

    def _empty(self, cut: Cut) -> Array | FileArray:
        shape = cut.at(self.layout.rows, self.layout.columns)
        if self.layout.is_file(cut.name) and self._workspace is not None:
            return self._workspace.empty(shape, cut.dtype)
        return self._arrays.empty(shape, cut.dtype)

    def _give_back(self, turn: Turn, first: int, last: int) -> None:
        """Give back the memory of rows that are read neither for the next steps [first, last) nor later."""
        for name in turn.given_back:
            cut = self.layout.cuts[name]
            assert cut.axis is not None
            low = min(self._lowest(turn.piece, first, last, cut)) if first < last else self.layout.height(cut)
            each = self.layout.row_elements(cut)
            self._arrays.give_back(self._whole(name), cut.axis, self._given_back.get(name, 0) * each, low * each)
            self._given_back[name] = low

    def _kept(self, piece: Piece, first: int, last: int) -> tuple[int, Array]:
        """Copies of the rows that are about to be overwritten but still read for the next steps [first, last), and the
        number of the first of them.
        """
        over = self._over
        if over is None or first >= last:
            return 0, None
        end = first * piece.rows_of_step(over.cut)
        lowest = min((end, *self._lowest(piece, first, last, over.cut)))
        assert over.cut.axis is not None
        return lowest, self._arrays.joined([self._slice(over.cut, lowest, end)], over.cut.axis)

    def _lowest(self, piece: Piece, first: int, last: int, wanted: Cut) -> Iterator[int]:
        """The first rows of a stored cut that are read for steps [first, last)."""
        for below, low, high in self.layout.chain(piece, first, last):
            if wanted.name in below.strips:
                yield self.layout.inside(wanted, *self.layout.source_rows(below, wanted, low, high))[0]

    def _compute(self, piece: Piece, first: int, last: int) -> dict[str, list[Array]]:
        """Steps [first, last) of each target of a piece, and means and variances of its rows if a norm reads them.

        Rows of virtual cuts are computed first, and let go as soon as nobody reads them.
        """
        layout = self.layout
        chain = layout.chain(piece, first, last)
        computed: dict[str, tuple[int, Array]] = {}
        for index, (below, low, high) in enumerate(chain[:-1]):
            low, high = max(0, low), min(layout.all_steps(below), high)
            for name, (rows, *_) in self._compute_steps(below, low, high, computed).items():
                computed[name] = low * below.rows_of_step(layout.cuts[name]), rows
            read = {name for later, _, _ in chain[index + 1 :] for name in later.strips}
            computed = {name: rows for name, rows in computed.items() if name in read}
        return self._compute_steps(piece, first, last, computed, statistics=True)

    def _compute_steps(
        self,
        piece: Piece,
        first: int,
        last: int,
        computed: Mapping[str, tuple[int, Array]],
        statistics: bool = False,
    ) -> dict[str, list[Array]]:
        """``_compute`` for a piece whose virtual cuts are ``computed``: name -> the first of some rows, and these."""
        layout = self.layout
        inputs = {name: self._whole(name) for name in piece.whole}
        for name in piece.strips:
            cut = layout.cuts[name]
            low, high = layout.inside(cut, *layout.source_rows(piece, cut, first, last))
            if name in computed:
                begin, rows = computed[name]
                inputs[name] = self._arrays.contiguous(self._part(rows, cut, low - begin, high - begin))
            else:
                inputs[name] = self._arrays.contiguous(self._slice(cut, low, high))
        outputs: dict[str, Cut] = {}
        for cut in (layout.cuts[name] for name in piece.targets):
            outputs[cut.name] = cut
            if statistics and cut.means is not None and cut.variances is not None:
                outputs[cut.means] = outputs[cut.variances] = cut
        arrays = self._run(piece, list(outputs), inputs)
        begin = max(0, first - piece.halo)
        found: dict[str, list[Array]] = {}
        for (name, cut), array in zip(outputs.items(), arrays, strict=True):
            each = piece.rows_of_step(cut)
            low, high = (first - begin) * each, (last - begin) * each
            rows = self._part(array, cut, low, high) if name == cut.name else array[:, :, low:high]
            found.setdefault(cut.name, []).append(rows)
        return found

    def _run(self, piece: Piece, outputs: Sequence[str], inputs: dict[str, Array]) -> list[Array]:
        for name in piece.norms:
            for norm in self.layout.cuts[name].norms:
                for wanted in (norm.mean, norm.inverse):
                    inputs[wanted] = self._statistics[wanted]
        if piece.columns:
            inputs[COLUMNS] = self._columns
        return self._sessions[id(piece)](outputs, inputs)

    def _whole(self, name: str) -> Array:
        """A cut that is stored in memory."""
        array = self._stored[name]
        assert not isinstance(array, FileArray)
        return array

    def _slice(self, cut: Cut, low: int, high: int) -> Array:
        """Rows [low, high) of a stored cut, those that were overwritten among them."""
        array, over = self._stored[cut.name], self._over
        if over is None or over.cut is not cut or low >= over.written:
            return self._part(array, cut, low, high)
        kept = self._part(over.rows, cut, low - over.first, min(high, over.written) - over.first)
        left = self._part(array, cut, over.written, max(high, over.written))
        assert cut.axis is not None
        return self._arrays.joined([kept, left], cut.axis)

    def _part(self, array: Array | FileArray, cut: Cut, low: int, high: int) -> Array:
        """Rows [low, high) of an array that holds rows of a cut."""
        assert cut.axis is not None
        each = self.layout.row_elements(cut)
        if isinstance(array, FileArray):
            return array.read(cut.axis, low * each, high * each)
        return self._arrays.part(array, cut.axis, low * each, high * each)

    def _combine(self, cut: Cut, rows: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> None:
        """The statistics of each group of channels, from those of the strips' rows, (1, C, rows) for each strip."""
        # Contiguous: numpy adds in the order of memory, and sums must not depend on the height of strips.
        means, variances = (
            np.ascontiguousarray(np.concatenate(kind, axis=2, dtype=np.float64)[0]) for kind in zip(*rows, strict=True)
        )
        channels = len(means)
        for norm in cut.norms:
            grouped = means.reshape(norm.groups, -1)
            mean = grouped.mean(axis=1)
            variance = variances.reshape(norm.groups, -1).mean(axis=1) + grouped.var(axis=1)
            inverse = 1 / np.sqrt(variance + norm.epsilon)
            shape = (1, channels, *[1] * (len(cut.shape) - 2))
            for name, numbers in ((norm.mean, mean), (norm.inverse, inverse)):
                spread = np.repeat(numbers, channels // norm.groups).reshape(shape)
                self._statistics[name] = spread.astype(np.float32)


class _Over:
    """A cut that is overwritten from its first row on, and copies of those of its rows that are still read."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self.written, self.first = 0, 0
        self.rows: Array = None
