"""Operators that move numbers: reshaping, transposing, joining, splitting."""

from __future__ import annotations

import math

from vaedeploy.rewrite.rows.layout import Layout, size_of
from vaedeploy.rewrite.rows.reading import Place, Reads, Window

__all__ = ["concat", "expand", "gather", "reshape", "slices", "split", "squeeze", "transpose", "unsqueeze"]


def concat(place: Place) -> Reads:
    axis = place.node.attributes.get_int("axis", 0) % place.rank(place.rowed[0])
    found = {place.layouts[index] for index in place.rowed}
    if len(found) != 1 or any(axis in (layout.axis, *layout.whole) for layout in found):
        raise place.fail("joins tensors along the rows of the image")
    return place.same(found.pop())


def split(place: Place) -> Reads:
    layout = place.only_first()
    if place.node.attributes.get_int("axis", 0) % place.rank() in (layout.axis, *layout.whole):
        raise place.fail("splits the rows of the image")
    return place.same()


def slices(place: Place) -> Reads:
    layout = place.only_first()
    starts = place.numbers(1)
    axes = [axis % place.rank() for axis in place.numbers(3) or range(len(starts))]
    if layout.axis in axes or layout.whole & set(axes):
        raise place.fail("cuts rows off the image")
    return place.same()


def gather(place: Place) -> Reads:
    layout = place.only_first()
    axis = place.node.attributes.get_int("axis", 0) % place.rank()
    if axis in (layout.axis, *layout.whole):
        raise place.fail("takes single rows of the image")
    added = len(place.shapes.of(place.input(1))[0]) - 1
    return place.same(layout.moved(lambda old: old + (added if old > axis else 0)))


def transpose(place: Place) -> Reads:
    order = list(place.node.attributes.get_ints("perm", list(reversed(range(place.rank())))))
    return place.same(place.only_first().moved(order.index))


def unsqueeze(place: Place) -> Reads:
    rank = len(place.shapes.of(place.node.outputs[0])[0])
    new = {axis % rank for axis in place.numbers(1)}
    kept = [axis for axis in range(rank) if axis not in new]
    return place.same(place.only_first().moved(kept.__getitem__))


def squeeze(place: Place) -> Reads:
    shape = place.shapes.of(place.input(0))[0]
    gone = {axis % len(shape) for axis in place.numbers(1)} or {a for a, size in enumerate(shape) if size == 1}
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    return place.same(place.only_first().moved(kept.index))


def expand(place: Place) -> Reads:
    added = len(place.shapes.of(place.node.outputs[0])[0]) - place.rank()
    return place.same(place.only_first().moved(lambda axis: axis + added))


def reshape(place: Place) -> Reads:
    """Rows stay rows if the elements before them, and between one and the next, are divided among whole axes."""
    layout, output = place.only_first(), place.node.outputs[0]
    place.no_whole()
    before, after = place.shapes.of(place.input(0)), place.shapes.of(output)
    tall = place.shapes.tall_axes(output)
    if len(tall) != 1 or layout.padded:
        raise place.fail("divides the rows of the image among several axes")
    (axis,) = tall
    if [math.prod(shape[:axis]) for shape in after] != [math.prod(shape[: place.axis()]) for shape in before]:
        raise place.fail("moves rows of the image into one another")
    size = size_of([shape[axis] for shape in after])
    if size is None:
        raise place.fail("gives a number of rows that is not a multiple of the latent's")
    # An axis of positions has as many rows as before: the image's width is in it.
    scale = layout.scale if size.columns else size.factor
    if scale % layout.scale and layout.scale % scale:
        raise place.fail(f"makes {scale} rows of {layout.scale}")
    larger = scale >= layout.scale
    return place.same(Layout(axis, scale), Window(layout.scale, scale) if larger else Window(layout.scale // scale, 1))
