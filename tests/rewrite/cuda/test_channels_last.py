"""A graph that is turned computes the same numbers: none is changed, so they are compared exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from fused import assert_same, convolution, draw, graph, node, operators, refusals, rewritten, weights

from vaedeploy.rewrite.cuda.channels_last import turn_channels_last

X = draw(2, 8, 5, 7)

INT = np.int64

CONVOLUTION = [convolution("x", "c", "k")]

WEIGHTS = weights("k")


def turned(model: onnx.ModelProto, matches: int, keep: set[str] | None = None) -> onnx.ModelProto:
    new, (outcome,) = rewritten(model, turn_channels_last, keep=keep)
    assert (outcome.rule, outcome.matches, outcome.refusals) == ("turn_channels_last", matches, ())
    assert "Conv" not in operators(new)
    return new


TURNED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], list[str]]] = {
    "a chain": ([node("Sigmoid", "c", "s"), node("Mul", "c s", "y")], {}, ["Sigmoid", "Mul"]),
    "a residual": ([node("Add", "c x", "y")], {}, ["Add"]),
    "a number": ([node("Mul", "n c", "y")], {"n": np.float32(3)}, ["Mul"]),
    "a number of three dimensions": ([node("Mul", "c n", "y")], {"n": draw(1, 1, 1)}, ["Mul"]),
    "a constant per channel": ([node("Mul", "c n", "y")], {"n": draw(8, 1, 1)}, ["Mul"]),
    "a constant per channel, of four dimensions": ([node("Div", "c n", "y")], {"n": draw(1, 8, 1, 1)}, ["Div"]),
    "a constant per column": ([node("Sub", "n c", "y")], {"n": draw(7)}, ["Sub"]),
    "a constant per pixel": ([node("Add", "n c", "y")], {"n": draw(8, 5, 7)}, ["Add"]),
    "a constant of a node": (
        [node("Constant", "", "n", value=onnx.numpy_helper.from_array(draw(8, 1, 1))), node("Mul", "c n", "y")],
        {},
        ["Mul"],
    ),
    "operands that are broadcast": (
        [node("ReduceMean", "x axes", "m", keepdims=1), node("Add", "c m", "y")],
        {"axes": np.array([2, 3])},
        ["ReduceMean", "Transpose", "Add"],
    ),
    "limits": ([node("Clip", "c low high", "y")], {"low": np.float32(-0.5), "high": np.float32(0.5)}, ["Clip"]),
    "one limit": ([node("Clip", "c _ high", "y")], {"high": np.float32(0.5)}, ["Clip"]),
    "other types": ([node("Cast", "c", "i", to=3), node("Cast", "i", "y", to=1)], {}, ["Cast", "Cast"]),
    "a Concat": ([node("Concat", "c x c", "y", axis=1)], {}, ["Concat"]),
    "a Concat of rows": ([node("Concat", "c c", "y", axis=-2)], {}, ["Concat"]),
    "a Concat of a batch": ([node("Concat", "c c", "y", axis=0)], {}, ["Concat"]),
    "scales": (
        [node("Resize", "c _ scales", "y", mode="nearest")],
        {"scales": np.array([1, 1, 2, 3], np.float32)},
        ["Resize"],
    ),
    "scales, as older exporters write them": (
        [node("Resize", "c roi scales", "y", mode="nearest")],
        {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 1], np.float32)},
        ["Resize"],
    ),
    "sizes": (
        [node("Resize", "c none none sizes", "y")],
        {"none": np.zeros(0, np.float32), "sizes": np.array([2, 8, 9, 6])},
        ["Resize"],
    ),
    "sizes that are computed": (
        [node("Shape", "c", "all"), node("Mul", "all by", "sizes"), node("Resize", "c _ _ sizes", "y")],
        {"by": np.array([1, 1, 2, 3])},
        ["Shape", "Gather", "Mul", "Gather", "Resize"],
    ),
    "a sequence and back": (
        [
            node("Reshape", "c flat", "row"),
            node("Sigmoid", "row", "s"),
            node("Shape", "c", "all"),
            node("Reshape", "s all", "y"),
        ],
        {"flat": np.array([0, 8, -1])},
        ["Reshape", "Sigmoid", "Shape", "Gather", "Gather", "Concat", "Reshape"],
    ),
}


@pytest.mark.parametrize(("nodes", "tensors", "new"), TURNED.values(), ids=TURNED)
def test_what_follows_a_convolution(nodes: list[Any], tensors: dict[str, Any], new: list[str]) -> None:
    model = graph([*CONVOLUTION, *nodes], {**WEIGHTS, **tensors})
    images = [n for n in nodes if n.op_type not in ("Constant", "ReduceMean", "Shape") and n.output[0] != "sizes"]
    result = turned(model, 1 + len(images))
    assert operators(result) == ["Transpose", "NhwcConv", *new, "Transpose"]
    assert_same(result, model, X)


@pytest.mark.parametrize("opset", [13, 18, 19, 20, 21])
@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [0, 1, 1, 0], "strides": [2, 2]},
        {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
        {"pads": [0, 0, 0, 0], "auto_pad": "NOTSET"},
        {"kernel_shape": [3, 3]},
    ],
    ids=str,
)
def test_convolutions(attributes: dict[str, Any], opset: int) -> None:
    model = graph([convolution("x", "y", "k", **attributes)], WEIGHTS, opset=opset)
    new = turned(model, 1)
    assert operators(new) == ["Transpose", "NhwcConv", "Transpose"]
    assert_same(new, model, X)


def test_convolutions_in_groups_and_without_a_bias() -> None:
    model = graph([node("Conv", "x kw", "y", group=4, kernel_shape=[3, 1])], {"kw": draw(12, 2, 3, 1)})
    assert_same(turned(model, 1), model, X)


def test_the_kernels_shape_is_written() -> None:
    """ONNX Runtime would read it from the weights, as if they were channels-first."""
    new = turned(graph([convolution("x", "y", "k")], weights("k", kernel=(3, 3))), 1)
    (kernel,) = [a.ints for n in new.graph.node for a in n.attribute if a.name == "kernel_shape"]
    assert list(kernel) == [3, 3]


def test_weights_that_two_convolutions_share() -> None:
    """TorchScript's exporter shares them through Identities."""
    nodes = [node("Identity", "kw", "same"), convolution("x", "c", "k"), node("Conv", "c same kb", "y")]
    model = graph(nodes, WEIGHTS)
    assert_same(turned(model, 2), model, X)


def test_a_result_that_others_read_too() -> None:
    """An operator that is not turned, and outputs: each value goes through one Transpose, whoever reads it."""
    nodes = [*CONVOLUTION, node("Sigmoid", "c", "s"), node("Softplus", "c", "p"), node("Softsign", "c", "y")]
    model = graph(nodes, WEIGHTS, outputs=("y", "c", "p", "s"))
    new = turned(model, 2)
    assert operators(new).count("Transpose") == 3
    assert_same(new, model, X)


def test_images_that_are_channels_last_outside() -> None:
    nodes = [
        node("Transpose", "x", "first", perm=[0, 3, 1, 2]),
        convolution("first", "c", "k"),
        node("Transpose", "c", "last", perm=[0, 2, 3, 1]),
        node("Round", "last", "y"),
    ]
    model = graph(nodes, WEIGHTS, shapes={"x": ("batch", "height", "width", 8)})
    new = turned(model, 1)
    assert operators(new) == ["NhwcConv", "Round"]
    assert_same(new, model, draw(2, 5, 7, 8))


def test_an_output_that_is_channels_last() -> None:
    nodes = [*CONVOLUTION, node("Transpose", "c", "y", perm=[0, 2, 3, 1]), node("Round", "y", "z")]
    model = graph(nodes, WEIGHTS, outputs=("y", "z"))
    new = turned(model, 1)
    assert operators(new) == ["Transpose", "NhwcConv", "Identity", "Round"]
    assert_same(new, model, X)


@pytest.mark.parametrize("bounds", [{}, {"start": 1}, {"start": -2}, {"end": 2}, {"start": 2, "end": 3}], ids=str)
def test_sizes_are_those_that_were_asked_for(bounds: dict[str, int]) -> None:
    nodes = [*CONVOLUTION, node("Shape", "c", "sizes", **bounds), node("Cast", "sizes", "y", to=1)]
    model = graph(nodes, WEIGHTS)
    new = turned(model, 1)
    assert operators(new) == ["Transpose", "NhwcConv", "Shape", "Gather", "Cast"]
    assert_same(new, model, X)
    output = graph([*CONVOLUTION, node("Shape", "c", "y", **bounds)], WEIGHTS)
    assert_same(turned(output, 1), output, X)


def test_sequences() -> None:
    """What reads a sequence channels-last, as the products of attention do, needs no Transpose any more."""
    nodes = [
        *CONVOLUTION,
        node("Reshape", "c flat", "row"),
        node("Mul", "row n", "m"),
        node("Transpose", "m", "last", perm=[0, 2, 1]),
        node("MatMul", "last p", "product"),
        node("Transpose", "product", "back", perm=[0, 2, 1]),
        node("Add", "back row", "y"),
    ]
    model = graph(nodes, {**WEIGHTS, "flat": np.array([0, 0, -1]), "n": draw(8, 1), "p": draw(8, 8)})
    new = turned(model, 4)
    assert operators(new) == ["Transpose", "NhwcConv", "Reshape", "Mul", "MatMul", "Add", "Transpose"]
    assert_same(new, model, X)


REFUSALS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "its weights are not constant": ([node("Conv", "x x", "y")], {}),
    "its padding is SAME_UPPER, not given in numbers": ([node("Conv", "x kw", "y", auto_pad="SAME_UPPER")], {}),
    "its input is not known to be an image (B, C, H, W)": (
        [node("Reshape", "x flat", "row"), node("Conv", "row w", "y")],
        {"flat": np.array([0, 8, -1]), "w": draw(8, 8, 3)},
    ),
}


@pytest.mark.parametrize(("reason", "given"), REFUSALS.items(), ids=REFUSALS)
def test_convolutions_that_stay(reason: str, given: tuple[list[onnx.NodeProto], dict[str, Any]]) -> None:
    nodes, tensors = given
    shapes = {"x": (8, 8, 3, 3)}
    assert [r.reason for r in refusals(graph(nodes, {**WEIGHTS, **tensors}, shapes=shapes), turn_channels_last)] == [
        reason
    ]


FIRST: dict[str, tuple[str, list[onnx.NodeProto], dict[str, Any]]] = {
    "fewer dimensions": (
        "an operand has not as many dimensions as the result",
        [node("Add", "c column", "y")],
        {},
    ),
    "more dimensions": (
        "an operand has not as many dimensions as the result",
        [node("Add", "c wide", "y")],
        {"wide": draw(2, 1, 1, 1, 1)},
    ),
    "a sequence beside an image": (
        "an operand has not as many dimensions as the result",
        [node("Reshape", "c flat", "row"), node("Add", "row image", "y")],
        {"flat": np.array([0, 8, -1])},
    ),
    "linear": (
        "it is not nearest, or gives some axes alone",
        [node("Resize", "c _ scales", "y", mode="linear")],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "axes": (
        "it is not nearest, or gives some axes alone",
        [node("Resize", "c _ scales", "y", axes=[2, 3])],
        {"scales": np.array([2, 2], np.float32)},
    ),
    "a part": (
        "it cuts out a part of its input",
        [node("Resize", "c roi scales", "y", coordinate_transformation_mode="tf_crop_and_resize")],
        {"roi": np.array([0, 0, 0.2, 0.2, 1, 1, 0.8, 0.8], np.float32), "scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "channels in two": (
        "it does not make a sequence of an image, or an image of a sequence",
        [node("Reshape", "c sizes", "y")],
        {"sizes": np.array([0, 4, 2, -1])},
    ),
    "channels that go": (
        "batch and channels are not known to stay",
        [node("Reshape", "c sizes", "y")],
        {"sizes": np.array([0, 4, -1])},
    ),
    "a batch that goes": (
        "batch and channels are not known to stay",
        [node("Reshape", "c sizes", "y")],
        {"sizes": np.array([1, 8, -1])},
    ),
}


@pytest.mark.parametrize(("reason", "nodes", "tensors"), FIRST.values(), ids=FIRST)
def test_what_stays_channels_first(reason: str, nodes: list[Any], tensors: dict[str, Any]) -> None:
    shapes = {"x": ("batch", 8, 5, 7), "column": (8, 1, 1), "image": (3, 1, 8, 35)}
    model = graph([*CONVOLUTION, *nodes], {**WEIGHTS, **tensors}, shapes=shapes)
    new, (outcome,) = rewritten(model, turn_channels_last)
    assert (outcome.matches, [r.reason for r in outcome.refusals]) == (len(nodes), [reason])
    assert_same(new, model, {"x": X, "column": draw(8, 1, 1), "image": draw(3, 1, 8, 35)})


def test_kept_nodes_are_kept() -> None:
    keep = {"at_c", "at_y"}
    model = graph([*CONVOLUTION, node("Sigmoid", "c", "s"), node("Mul", "s n", "y")], {**WEIGHTS, "n": np.float32(2)})
    new = turned(model, 3, keep)
    kept = [n.op_type for n in new.graph.node if n.name in keep]
    assert kept == ["NhwcConv", "Mul"]


def test_nodes_without_names_and_names_that_are_taken() -> None:
    nodes = [convolution("x", "c.last", "k"), convolution("c.last", "c", "k"), node("Sigmoid", "c", "y")]
    for each in nodes:
        each.ClearField("name")
    model = graph(nodes, WEIGHTS)
    assert_same(turned(model, 3), model, X)


def test_operators_that_came_with_the_graph() -> None:
    """A GroupNorm of ONNX Runtime is channels-last already."""
    attributes = {"groups": 2, "channels_last": 1, "activation": 1, "epsilon": 1e-5}
    nodes = [
        node("Transpose", "x", "last", perm=[0, 2, 3, 1]),
        node("GroupNorm", "last one zero", "normal", domain="com.microsoft", **attributes),
        node("Transpose", "normal", "y", perm=[0, 3, 1, 2]),
    ]
    model = graph(nodes, {"one": np.ones(8, np.float32), "zero": np.zeros(8, np.float32)}, inferred=False)
    assert refusals(model, turn_channels_last) == []
