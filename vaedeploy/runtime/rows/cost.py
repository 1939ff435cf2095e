"""What a layout costs: bytes of memory and of files, and operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from vaedeploy.bundle.rows import Cut, Piece
from vaedeploy.runtime.rows.layout import Layout, Turn
from vaedeploy.runtime.rows.store import PAGE

__all__ = [
    "OVERHEAD",
    "SCORES",
    "best_height",
    "file_bytes",
    "least_work",
    "operations",
    "stored_bytes",
    "turn_operations",
    "work",
]

WORK = 160 * 2**20
"""Bytes that one strip may take where memory is not short. Larger strips are no faster."""

HALO_SHARE = 32
"""A strip is this many times as high as its halo, where memory is not short: 2/32 of the rows are computed again."""

LARGE = 2**30
"""Bytes that a strip may take to be that high."""

SCORES = 2 * 64 * 2**20
"""Bytes that attention takes besides what grows with the image: a block of scores, and its softmax."""

OVERHEAD = 48 * 2**20
"""Bytes that a call takes whatever the size: sessions, and what the allocator keeps."""

ARENA = 2.0
"""Bytes that ONNX Runtime takes per byte of tensors, since its arena grows by doubling: the most that was measured."""

STATISTICS = 3
"""How often a tensor is in memory while the variances of its rows are computed: itself, without its mean, squared."""

WEIGHTS = 3
"""How often the weights of an open piece are in memory: as read, in the session, and in the order of its kernels."""


def stored_bytes(layout: Layout) -> list[int]:
    """Bytes of memory in which cuts are stored while each turn runs."""
    return _stored(layout, lambda name: not layout.is_file(name))


def file_bytes(layout: Layout) -> list[int]:
    """Bytes of files in which cuts are stored while each turn runs."""
    return _stored(layout, layout.is_file)


def _stored(layout: Layout, counts: Callable[[str], bool]) -> list[int]:
    """Bytes of the stored cuts that ``counts``, for each turn: at its beginning or its end, whichever is more.

    In memory, a turn's results grow while what it reads for the last time is given back.
    """
    live: dict[str, int] = {}
    found = []
    for turn in layout.turns:
        new = {n: layout.bytes(n) for n in turn.piece.targets if layout.is_stored(n) and counts(n)}
        extra = 0 if turn.over else sum(new.values())
        extra -= sum(layout.bytes(name) for name in turn.given_back if counts(name))
        found.append(sum(live.values()) + max(0, extra))
        for name in turn.dying:
            live.pop(name, None)
        live.update({name: size for name, size in new.items() if name in layout.read})
    return found


def least_height(layout: Layout, piece: Piece) -> int:
    """The fewest steps that a strip of ``piece`` has.

    For attention this is the only height, whatever the memory: the queries of one block of scores. ONNX Runtime's
    products of 48 and of 384 rows differ in the last bit.
    """
    if piece.quadratic:
        row = layout.rows * layout.columns**2 * 4
        return min(layout.all_steps(piece), max(1, SCORES // 2 // row))
    return min(layout.all_steps(piece), max(1, layout.total_halo(piece)))


def least_work(layout: Layout, turn: Turn) -> int:
    """``work`` in the lowest strips."""
    piece = turn.piece
    return layout.once(
        "work", piece, lambda: work(layout, turn, least_height(layout, piece)), turn.over, turn.given_back
    )


def work(layout: Layout, turn: Turn, height: int) -> int:
    """Bytes that a turn takes beside what is stored, in strips of ``height`` steps."""
    piece, total, pairs = turn.piece, OVERHEAD, 0
    if layout.cuts[piece.targets[0]].axis is None:
        tensors = int(piece.work * layout.rows * layout.columns * ARENA)
        return total + tensors + sum(weight.bytes for weight in piece.weights) * WEIGHTS
    for below, first, last in layout.far_chain(piece, height):
        steps = min(last - first + 2 * below.halo, layout.rows * below.steps)
        tensors = below.work * steps * layout.columns
        if below is piece:
            normalised = (cut for cut in map(layout.cuts.__getitem__, piece.targets) if cut.norms)
            tensors = max(tensors, STATISTICS * sum(_bytes_of_steps(layout, piece, cut, steps) for cut in normalised))
        total += int(tensors * ARENA)
        total += sum(weight.bytes for weight in below.weights) * WEIGHTS
        pairs += below.quadratic
        files = (layout.cuts[n] for n in below.strips if layout.is_file(n) and layout.is_stored(n))
        total += sum(_bytes_of_steps(layout, below, cut, steps) for cut in files)
    written = (layout.cuts[n] for n in piece.targets if layout.is_file(n) and layout.is_stored(n))
    total += sum(_bytes_of_steps(layout, piece, cut, height) for cut in written)
    if turn.over:
        total += _bytes_of_steps(layout, piece, layout.cuts[turn.over], layout.total_halo(piece))
    total += _not_yet_given_back(layout, turn, height)
    return total + (min(SCORES, 8 * (layout.rows * layout.columns) ** 2) if pairs else 0)


def _not_yet_given_back(layout: Layout, turn: Turn, height: int) -> int:
    """Bytes by which a turn's results are ahead of what it gives back, and bytes of pages that it cannot give back."""
    if not turn.given_back:
        return 0
    piece, back = turn.piece, [layout.cuts[name] for name in turn.given_back]
    results = [layout.cuts[name] for name in piece.targets if layout.is_stored(name)]
    moving = max(sum(layout.bytes(cut.name) for cut in cuts) for cuts in (back, results))
    ahead = min(layout.all_steps(piece), height + layout.total_halo(piece))
    pages = sum(2 * PAGE * math.prod(cut.at(layout.rows, layout.columns)[: cut.axis]) for cut in back)
    return moving * ahead // layout.all_steps(piece) + pages


def _bytes_of_steps(layout: Layout, piece: Piece, cut: Cut, steps: int) -> int:
    return layout.bytes(cut.name) * min(steps, layout.all_steps(piece)) // layout.all_steps(piece)


def best_height(layout: Layout, turn: Turn, room: int) -> int:
    """How many steps a strip of a turn has where ``room`` bytes are left for its work."""
    piece = turn.piece
    least, most = least_height(layout, piece), layout.all_steps(piece)
    if piece.quadratic:
        return least
    more = min(most, least + 64)
    each = -(-(work(layout, turn, more) - work(layout, turn, least)) // max(1, more - least)) or 1
    wanted = max(min(HALO_SHARE * layout.total_halo(piece), LARGE // each), WORK // each, least)
    affordable = least + max(0, room - work(layout, turn, least)) // each
    height = min(wanted, affordable, most)
    while height > least and (excess := work(layout, turn, height) - room) > 0:
        height = max(least, height - max(1, excess // each))
    # Strips of about one height, with no low one at the end.
    return max(least, -(-most // -(-most // height)))


def operations(layout: Layout, heights: Sequence[int] | None = None) -> float:
    """Operations of all turns. heights: those of their strips, to count halos; without them halos cost nothing."""
    given: Sequence[int | None] = heights or [None] * len(layout.turns)
    return sum(turn_operations(layout, turn, height) for turn, height in zip(layout.turns, given, strict=True))


def turn_operations(layout: Layout, turn: Turn, height: int | None = None) -> float:
    """Operations of one turn, in strips of ``height`` steps; None for one strip."""
    piece, area, total = turn.piece, layout.rows * layout.columns, 0.0
    cut = height is not None and height < layout.all_steps(piece)
    height = layout.all_steps(piece) if height is None else height
    for below, first, last in layout.far_chain(piece, height):
        share = (last - first + 2 * below.halo) * piece.steps / (height * below.steps) if cut else 1.0
        total += (below.operations * area + below.quadratic * area**2) * share
    return total
