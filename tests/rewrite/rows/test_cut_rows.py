"""Pieces, joined, are the half: the same bits whatever the strips, and its result to the last digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from row_pieces import CHANNELS, Network, by_rows, table_of, whole

from vaedeploy.bundle.rows import RowsTable
from vaedeploy.rewrite.rows import cut_rows


def padded(mode: str) -> Callable[[Network], Network]:
    def add(net: Network) -> Network:
        return net.add("Pad", net.constant([0, 0, 1, 1, 0, 0, 1, 1]), mode=mode).conv(pads=[0] * 4)

    return add


def shuffled(net: Network) -> Network:
    """A pixel shuffle, of a Reshape, a Transpose and a Reshape, whose shapes are computed."""
    net.conv(8)
    x = net.x
    shape = net.add("Shape", first=x, start=2).x
    batch = net.add("Shape", first=x, end=1).x
    sides = [net.add("Slice", net.constant([i]), net.constant([i + 1]), first=shape).x for i in (0, 1)]
    two = net.constant([2])
    split = net.add("Concat", two, two, two, *sides, first=batch, axis=0).x
    net.add("Reshape", split, first=x).add("Transpose", perm=[0, 1, 4, 2, 5, 3])
    moved = net.x
    twice = [net.add("Mul", two, first=side).x for side in sides]
    joined = net.add("Concat", two, *twice, first=batch, axis=0).x
    net.channels = 2
    return net.add("Reshape", joined, first=moved)


def depth_to_space(net: Network) -> Network:
    net.conv(16).add("DepthToSpace", blocksize=2)
    net.channels = 4
    return net


def linear_attention(net: Network) -> Network:
    """Sums over all positions, as DC-AE has them."""
    net.conv(8)
    x = net.x
    flat = net.add("Reshape", net.constant([0, 8, -1])).x
    sums = net.add("Transpose", first=flat, perm=[0, 2, 1]).x
    table = net.add("MatMul", sums, first=flat).x
    net.add("MatMul", flat, first=net.add("Tanh", first=table).x)
    product = net.x
    shape = net.add("Shape", first=x).x
    return net.add("Reshape", shape, first=product)


def two_norms(net: Network) -> Network:
    """A tensor that is normalised by different groups, in steps between which there is another norm."""
    net.conv(8)
    x = net.x
    first = net.norm(2).silu().conv(8).norm().x
    net.x = x
    return net.norm(4).add("Add", first)


def pooled(net: Network) -> Network:
    """Each channel times its mean over the whole image."""
    net.conv(8)
    x = net.x
    return net.add("ReduceMean", net.constant([2, 3])).add("Mul", x)


LAYERS: dict[str, tuple[Callable[[Network], Network], int]] = {
    "3x3": (lambda net: net.conv(), 1),
    "5x5, dilated": (lambda net: net.conv(kernel=5).conv(dilations=[2, 2], pads=[2] * 4), 1),
    "many, without a norm": (lambda net: net.conv().conv().conv().conv().conv().conv().conv().conv().conv().conv(), 1),
    "norm": (lambda net: net.conv().norm().silu().conv(), 1),
    "two norms of one tensor": (two_norms, 1),
    "blocks": (lambda net: net.block().block(12), 1),
    "up": (lambda net: net.block().up().conv().block(), 2),
    "up, with its border repeated": (lambda net: padded("reflect")(net.block().up()).block(), 2),
    "up without a convolution": (lambda net: net.conv().up().silu().block(), 2),
    "transposed": (lambda net: transposed(net).block(), 2),
    "depth to space": (depth_to_space, 2),
    "pixel shuffle": (shuffled, 2),
    "attention": (lambda net: net.block().attention().block(), 1),
    "attention twice": (lambda net: net.conv().attention().conv().attention(), 1),
    "linear attention": (linear_attention, 1),
    "mean over the image": (pooled, 1),
    "edge": (padded("edge"), 1),
    "reflect": (padded("reflect"), 1),
    "max pool": (lambda net: net.conv().add("MaxPool", kernel_shape=[3, 3], pads=[1] * 4), 1),
    "norm over channels": (lambda net: net.conv().add("LpNormalization", axis=1, p=2).conv(), 1),
}


def transposed(net: Network) -> Network:
    weight = net.random(CHANNELS, 8, 4, 4)
    net.channels = 8
    return net.add("ConvTranspose", weight, strides=[2, 2], pads=[1] * 4)


@pytest.mark.parametrize("name", LAYERS)
def test_strips_of_any_height_are_the_whole(name: str, tmp_path: Path) -> None:
    layers, scale = LAYERS[name]
    graph = layers(Network()).graph(scale)
    table = table_of(tmp_path, graph)
    virtual = [cut.name for cut in table.cuts if cut.axis is not None and cut.name not in given_or_whole(table)]
    for shape in ((9, 5), (4, 3)):
        item = np.random.default_rng(1).standard_normal((1, CHANNELS, *shape)).astype(np.float32)
        wanted = whole(graph, item)
        first = by_rows(tmp_path, table, item, 1)
        error = np.linalg.norm((first - wanted).astype(np.float64)) / np.linalg.norm(wanted.astype(np.float64))
        assert error < 1e-6
        for height, again in ((3, []), (100, []), (2, virtual), (1, virtual[1::2])):
            assert np.array_equal(by_rows(tmp_path, table, item, height, again), first), (height, again)
        assert np.array_equal(by_rows(tmp_path, table, item, 2, on_disk=True), first)


def given_or_whole(table: RowsTable) -> set[str]:
    """The cuts that are stored in every plan."""
    return {table.input, *table.outputs, *(name for piece in table.pieces for name in piece.whole)}


@pytest.mark.parametrize(
    ("layers", "halos"),
    [
        (lambda net: net.conv(), [1]),
        (lambda net: net.conv(kernel=1), [0]),
        (lambda net: net.conv(kernel=7).conv(), [4]),
        (lambda net: net.conv().norm().conv(), [1, 1]),
    ],
    ids=["3x3", "1x1", "7x7 and 3x3", "a norm between"],
)
def test_no_more_rows_are_read_than_are_needed(
    layers: Callable[[Network], Network], halos: list[int], tmp_path: Path
) -> None:
    table = table_of(tmp_path, layers(Network()).graph())
    assert [piece.halo for piece in table.pieces] == halos


REFUSED: dict[str, tuple[Callable[[Network], Network], str]] = {
    "a cumulative sum": (
        lambda net: net.add("CumSum", net.constant(2)),
        "CumSum is not known to compute rows apart from one another",
    ),
    "softmax over rows": (lambda net: net.add("Softmax", axis=2), "Softmax runs over the rows of the image"),
    "normalisation over rows and columns": (
        lambda net: net.add("LayerNormalization", net.constant([1.0], np.float32), axis=2),
        "LayerNormalization normalises over the rows of the image",
    ),
    "instances": (
        lambda net: net.conv(2).add(
            "InstanceNormalization", net.constant([1, 1], np.float32), net.constant([0, 0], np.float32)
        ),
        "it normalises, and not over groups of channels between two Reshapes",
    ),
    "rows joined": (lambda net: net.add("Concat", net.x, axis=2), "Concat joins tensors along the rows of the image"),
    "bilinear": (
        lambda net: net.add("Resize", "", net.constant([1, 1, 2, 2], np.float32), mode="linear"),
        "Resize does not repeat each row as often as the next",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_with_the_reason(name: str) -> None:
    layers, reason = REFUSED[name]
    net = Network()
    graph = layers(net).graph(2 if name in ("rows joined", "bilinear") else 1)
    before = ir.serde.serialize_model(graph.model).SerializeToString(deterministic=True)
    rows = cut_rows(graph, 1)
    assert not rows.pieces
    (refusal,) = rows.outcome.refusals
    assert reason in refusal.reason
    assert refusal.node
    assert ir.serde.serialize_model(graph.model).SerializeToString(deterministic=True) == before


def test_rows_of_more_than_a_page_are_given_back_and_nothing_else(tmp_path: Path) -> None:
    """Rows so wide that the memory of single ones goes back while later ones are still read."""
    net = Network().conv(8).block(12).up().conv(6).block(6).block(4)
    graph = net.graph(2)
    table = table_of(tmp_path, graph)
    virtual = [cut.name for cut in table.cuts if cut.axis is not None and cut.name not in given_or_whole(table)]
    item = np.random.default_rng(2).standard_normal((1, CHANNELS, 12, 1700)).astype(np.float32)
    wanted = whole(graph, item)
    first = by_rows(tmp_path, table, item, 100)
    assert np.linalg.norm((first - wanted).astype(np.float64)) < 1e-6 * np.linalg.norm(wanted.astype(np.float64))
    for height, again, on_disk in ((1, [], False), (3, virtual[::2], False), (2, virtual[1::2], True), (1, [], True)):
        assert np.array_equal(by_rows(tmp_path, table, item, height, again, on_disk), first), (height, again, on_disk)
