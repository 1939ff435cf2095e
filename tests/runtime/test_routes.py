"""Which range of an engine takes a size, and how a batch is cut into ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaedeploy.errors import SizeError
from vaedeploy.runtime.routes import Slot, cut, tightest
from vaedeploy.values.shapes import ShapeSet

# ------------------------------------------------------------------------------------------------- which range, how cut

SLOTS = [
    Slot("a", 0, ShapeSet(height=(64, 512, 1024), width=(64, 512, 1024), batch=(1, 1, 4))),
    Slot("a", 1, ShapeSet(height=512, width=512)),
    Slot("b", 0, ShapeSet(height=512, width=512, batch=2)),
]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 512, 512), SLOTS[1]),
        ((2, 512, 512), SLOTS[2]),
        ((3, 512, 512), SLOTS[0]),
        ((1, 512, 520), SLOTS[0]),
        ((1, 1024, 1024), SLOTS[0]),
        ((5, 512, 512), None),
        ((1, 56, 512), None),
        ((1, 512, 1032), None),
    ],
)
def test_the_tightest_range_answers(size: tuple[int, int, int], expected: Slot | None) -> None:
    assert tightest(SLOTS, *size) == expected


def test_of_equal_ranges_the_first_answers() -> None:
    twin = Slot("c", 0, ShapeSet(height=512, width=512))
    assert tightest([*SLOTS, twin], 1, 512, 512) == SLOTS[1]


@pytest.mark.parametrize(
    ("batch", "pieces"),
    [
        (4, [(0, 4, SLOTS[0])]),
        (5, [(0, 4, SLOTS[0]), (4, 5, SLOTS[1])]),
        (10, [(0, 4, SLOTS[0]), (4, 8, SLOTS[0]), (8, 10, SLOTS[2])]),
    ],
)
def test_a_batch_is_cut_at_the_largest(batch: int, pieces: list[tuple[int, int, Slot]]) -> None:
    assert [(piece.start, piece.stop, piece.slot) for piece in cut(SLOTS, batch, 512, 512)] == pieces


@given(st.integers(1, 40), st.sampled_from([512, 768]))
def test_pieces_are_the_batch(batch: int, side: int) -> None:
    pieces = cut(SLOTS, batch, side, side)
    assert [n for piece in pieces for n in range(piece.start, piece.stop)] == list(range(batch))
    assert all(piece.slot.shape.holds(piece.stop - piece.start, side, side) for piece in pieces)


def test_a_size_that_no_range_holds_is_told_with_those_that_there_are() -> None:
    with pytest.raises(SizeError) as refused:
        cut(SLOTS, 1, 2048, 512)
    assert str(refused.value) == (
        "no engine takes 1x2048x512 (batch x height x width, in pixels); there are: "
        "1-4x64-1024x64-1024, 1x512x512, 2x512x512"
    )
    with pytest.raises(SizeError, match=r"^no engine takes 3x512x512 .*; there are: 2x512x512$"):
        cut(SLOTS[2:], 3, 512, 512)


def test_a_batch_is_cut_so_that_nothing_is_left_over() -> None:
    """Five are three and two where an engine takes two to four: four and one would not do."""
    slot = Slot("a", 0, ShapeSet(height=8, width=8, batch=(2, 2, 4)))
    assert [(piece.start, piece.stop) for piece in cut([slot], 5, 8, 8)] == [(0, 3), (3, 5)]
    with pytest.raises(SizeError, match="no engine takes 1x8x8"):
        cut([slot], 1, 8, 8)
    with pytest.raises(SizeError, match=r"there are: none$"):
        cut([], 1, 512, 512)
