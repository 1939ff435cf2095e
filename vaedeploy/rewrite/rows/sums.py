"""Elementwise operators, and those that sum: matrix products, reductions, normalisations of an axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import add

from vaedeploy.rewrite.rows.layout import NO_ROWS, Layout
from vaedeploy.rewrite.rows.reading import SAME, WHOLE, Place, Reads

__all__ = ["along_axis", "elementwise", "gemm", "last_axes", "per_channel", "product", "reduction"]

FIXED = "sums over the rows of the image with weights of a fixed size"


def elementwise(place: Place) -> Reads:
    rank = len(place.shapes.of(place.node.outputs[0])[0])
    found: set[Layout] = set()
    for index in place.rowed:
        added = rank - place.rank(index)
        found.add(place.layouts[index].moved(partial(add, added)))
    if len(found) != 1:
        raise place.fail("joins tensors whose rows lie in other places")
    return place.same(found.pop())


def along_axis(default: int) -> Callable[[Place], Reads]:
    """Rule for operators that mix the numbers along one axis and keep the shape."""

    def rule(place: Place) -> Reads:
        if place.node.attributes.get_int("axis", default) % place.rank() == place.only_first().axis:
            raise place.fail("runs over the rows of the image")
        return place.same()

    return rule


def last_axes(place: Place) -> Reads:
    place.only_first()
    if place.axis() >= place.node.attributes.get_int("axis", -1) % place.rank():
        raise place.fail("normalises over the rows of the image")
    return place.same()


def per_channel(place: Place) -> Reads:
    if place.only_first().axis == 1:
        raise place.fail("takes rows for channels")
    return place.same()


def reduction(place: Place) -> Reads:
    layout, rank = place.only_first(), place.rank()
    axes = place.numbers(1) or list(place.node.attributes.get_ints("axes", ())) or list(range(rank))
    reduced = {axis % rank for axis in axes}
    kept = place.node.attributes.get_int("keepdims", 1)
    whole = layout.whole - reduced
    if place.axis() in reduced:
        if whole or layout.padded:
            raise place.fail("runs over the rows of a table of all positions, or of a padded image")
        return place.same(NO_ROWS, WHOLE)

    def moved(axis: int) -> int:
        return axis if kept else axis - sum(other < axis for other in reduced)

    return place.same(replace(layout, whole=whole).moved(moved))


def product(place: Place) -> Reads:
    """Matrices (..., N, D) and (..., D, M): rows along N or M stay; a sum over rows needs all of them."""
    left, right = place.layouts[:2]
    ranks = place.rank(0), place.rank(1)
    rank = max(ranks)
    if left.padded or right.padded or right.whole:
        raise place.fail("multiplies matrices of a padded image")
    on_left = None if left.axis is None else left.axis + rank - ranks[0]
    on_right = None if right.axis is None else right.axis + rank - ranks[1]
    if on_left == rank - 1 or ranks[0] - 1 in left.whole:  # a sum over positions needs all rows of the right operand
        if on_right != rank - 2:
            raise place.fail(FIXED)
        if on_left is None or on_left == rank - 1:
            return Reads((NO_ROWS,), {0: WHOLE, 1: WHOLE})
        return Reads((Layout(on_left, left.scale),), {0: SAME, 1: WHOLE})
    if left.whole or on_right == rank - 2:
        raise place.fail(FIXED)
    if on_left is None or on_right is None:
        return place.same(Layout(on_left, left.scale) if on_right is None else Layout(on_right, right.scale))
    if on_left == on_right and on_left < rank - 2 and left.scale == right.scale:
        return place.same(Layout(on_left, left.scale))
    if on_left == rank - 2 and on_right == rank - 1:
        return Reads((Layout(on_left, left.scale, whole=frozenset((rank - 1,))),), {0: SAME, 1: WHOLE})
    raise place.fail("multiplies rows of the image with one another")


def gemm(place: Place) -> Reads:
    layout = place.only_first()
    if layout.axis != 0 or place.node.attributes.get_int("transA", 0) != 0 or layout.padded:
        raise place.fail(FIXED)
    return place.same(Layout(0, layout.scale))
