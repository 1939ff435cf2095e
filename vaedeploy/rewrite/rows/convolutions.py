"""Operators that read rows around a row: convolutions and pooling, padding, resizing."""

from __future__ import annotations

from vaedeploy.rewrite.doubling import NEAREST
from vaedeploy.rewrite.rows.layout import Layout, size_of
from vaedeploy.rewrite.rows.reading import Place, Reads, Window

__all__ = ["convolution", "depth_to_space", "pad", "resize", "transposed"]


def convolution(place: Place) -> Reads:
    layout, attributes = place.only_first(), place.node.attributes
    place.no_whole()
    spatial = place.axis() - 2
    if spatial < 0:
        raise place.fail("takes rows for channels")
    kernel = place.shapes.of(place.input(1))[0][2:] if place.node.op_type == "Conv" else ()
    kernel = kernel or tuple(attributes.get_ints("kernel_shape", ()))
    count = len(kernel)
    if attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or attributes.get_int("ceil_mode", 0) != 0:
        raise place.fail("pads by a rule that depends on the image's size")
    stride = list(attributes.get_ints("strides", [1] * count))[spatial]
    dilation = list(attributes.get_ints("dilations", [1] * count))[spatial]
    pads = list(attributes.get_ints("pads", [0] * 2 * count))
    reach, above, below = (kernel[spatial] - 1) * dilation + 1, pads[spatial], pads[spatial + count]
    if layout.scale % stride:
        raise place.fail(f"takes every {stride}th row of {layout.scale} for each row of the latent")
    if place.flat() and (reach, stride) != (1, 1):
        raise place.fail("runs along positions and not along rows")
    # Rows that a Pad added and rows that this operator pads count together.
    window = Window(stride, 1, above + layout.above, reach - stride - above - layout.above)
    more = layout.above + layout.below + above + below - reach + stride
    scale = layout.scale // stride
    if more // stride == 0:
        return place.same(Layout(place.axis(), scale), window)
    if stride != 1:
        raise place.fail("gives rows that do not begin where the latent's do")
    # It pads more rows than it takes away, or fewer, like a convolution without padding after a Pad of two.
    shift = layout.above + above - (reach - 1) // 2
    shifted = Window(1, 1, window.above - shift, window.below + shift)
    return place.same(Layout(place.axis(), scale, shift, more - shift), shifted)


def transposed(place: Place) -> Reads:
    layout = place.only_first()
    place.no_whole()
    attributes, weight = place.node.attributes, place.shapes.of(place.input(1))[0]
    count, spatial = len(weight) - 2, place.axis() - 2
    if spatial < 0 or layout.padded or place.flat():
        raise place.fail("runs along an axis that is not the image's height")
    kernel, stride = weight[2 + spatial], list(attributes.get_ints("strides", [1] * count))[spatial]
    pads = list(attributes.get_ints("pads", [0] * 2 * count))
    if list(attributes.get_ints("dilations", [1] * count))[spatial] != 1 or "output_shape" in attributes:
        raise place.fail("has a dilation or states its output's size")
    more = list(attributes.get_ints("output_padding", [0] * count))[spatial] - pads[spatial] - pads[spatial + count]
    if attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or kernel - stride + more:
        raise place.fail(f"does not give {stride} rows for each that it takes")
    window = Window(1, stride, -(-(kernel - 1 - pads[spatial]) // stride), -(-pads[spatial] // stride))
    return place.same(Layout(place.axis(), layout.scale * stride), window)


def pad(place: Place) -> Reads:
    layout = place.only_first()
    place.no_whole()
    rank, pads = place.rank(), place.numbers(1)
    axes = [axis % rank for axis in place.numbers(3)] or list(range(rank))
    if place.axis() not in axes:
        return place.same()
    index = axes.index(place.axis())
    above, below = pads[index], pads[index + len(axes)]
    if above == below == 0:
        return place.same()
    wraps = place.node.attributes.get_string("mode", "constant") == "wrap"
    if above < 0 or below < 0 or layout.padded or place.flat() or wraps:
        raise place.fail("cuts rows off, or pads twice, or by the image's other end")
    return place.same(Layout(place.axis(), layout.scale, above, below))


def resize(place: Place) -> Reads:
    layout, attributes = place.only_first(), place.node.attributes
    place.no_whole()
    size = size_of([shape[place.axis()] for shape in place.shapes.of(place.node.outputs[0])])
    if size is None or size.factor % layout.scale or layout.padded or place.flat():
        raise place.fail("does not enlarge by a whole number")
    factor = size.factor // layout.scale
    coordinates = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounding = attributes.get_string("nearest_mode", "round_prefer_floor")
    exact = (coordinates, rounding) == ("asymmetric", "floor") or (factor == 2 and (coordinates, rounding) in NEAREST)
    if attributes.get_string("mode", "nearest") != "nearest" or not (exact or factor == 1):
        raise place.fail("does not repeat each row as often as the next")
    return place.same(Layout(place.axis(), size.factor), Window(1, factor))


def depth_to_space(place: Place) -> Reads:
    layout, block = place.only_first(), place.node.attributes.get_int("blocksize", 1)
    place.no_whole()
    if place.axis() != 2 or layout.padded:
        raise place.fail("does not make rows of rows")
    if place.node.op_type == "SpaceToDepth":
        return place.same(Layout(2, layout.scale // block), Window(block, 1))
    return place.same(Layout(2, layout.scale * block), Window(1, block))
