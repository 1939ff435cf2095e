"""The folded layer is Resize and then Conv, and only where it really is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fused import assert_same, convolution, draw, graph, node, operators, refusals, rewritten, weights

from vaedeploy.rewrite.cuda.channels_last import turn_channels_last
from vaedeploy.rewrite.cuda.upsample import fold_upsampling_last

X = draw(2, 8, 5, 7)

SCALES = {"scales": np.array([1, 1, 2, 2], np.float32)}

ROUNDING = 1e-6
"""Of the largest number: taps are summed before they are rounded, in sums of 72 products of numbers around 0.1."""


def resize(x: str = "x", output: str = "up", **attributes: Any) -> onnx.NodeProto:
    asymmetric = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return node("Resize", f"{x} _ scales", output, **{**asymmetric, **attributes})


def layer(**attributes: Any) -> list[onnx.NodeProto]:
    return [resize(), convolution("up", "y", "k", **attributes)]


BY_ONE = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}


def bordered(mode: str) -> list[onnx.NodeProto]:
    return [resize(), node("Pad", "up pads", "framed", mode=mode), convolution("framed", "y", "k", pads=[0] * 4)]


def folded(model: onnx.ModelProto, matches: int = 1, keep: set[str] | None = None) -> onnx.ModelProto:
    new, (outcome,) = rewritten(model, fold_upsampling_last, keep=keep)
    assert (outcome.rule, outcome.matches, outcome.refusals) == ("fold_upsampling_last", matches, ())
    assert operators(new).count("NhwcConv") == 4 * matches
    return new


@pytest.mark.parametrize("opset", [13, 18, 19, 20, 21])
@pytest.mark.parametrize("size", [(1, 8, 1, 1), (2, 8, 5, 7), (3, 8, 4, 2)], ids=str)
def test_it_is_the_same(size: tuple[int, ...], opset: int) -> None:
    model = graph(layer(), {**weights("k"), **SCALES}, opset=opset)
    assert_same(folded(model), model, draw(*size), ROUNDING)


def test_other_channels_and_no_bias() -> None:
    nodes = [resize(), node("Conv", "up kw", "y", pads=[1, 1, 1, 1])]
    model = graph(nodes, {**weights("k", 3), **SCALES})
    assert_same(folded(model), model, X, ROUNDING)


def test_groups() -> None:
    model = graph(layer(group=2), {**weights("k", 12, 4), **SCALES})
    new = folded(model)
    assert [a.i for n in new.graph.node for a in n.attribute if a.name == "group"] == [2] * 4
    assert_same(new, model, X, ROUNDING)


def test_weights_that_are_shared_through_an_identity() -> None:
    nodes = [node("Identity", "kw", "same"), resize(), node("Conv", "up same kb", "y", pads=[1, 1, 1, 1])]
    model = graph(nodes, {**weights("k"), **SCALES})
    assert_same(folded(model), model, X, ROUNDING)


def test_several_of_the_same_weights_and_without_names() -> None:
    nodes = [*layer(), resize("y", "up2"), convolution("up2", "z", "k")]
    for each in nodes:
        each.ClearField("name")
    model = graph(nodes, {**weights("k"), **SCALES}, outputs=("z",))
    assert_same(folded(model, 2), model, X, ROUNDING)


def test_a_resize_that_is_an_output_too() -> None:
    model = graph(layer(), {**weights("k"), **SCALES}, outputs=("up", "y"))
    new = folded(model)
    assert "Resize" in operators(new)
    assert_same(new, model, X, ROUNDING)


@pytest.mark.parametrize("mode", ["edge", "reflect"])
@pytest.mark.parametrize("size", [(1, 8, 1, 1), (2, 8, 5, 7)], ids=str)
def test_a_repeated_border(size: tuple[int, ...], mode: str) -> None:
    model = graph(bordered(mode), {**weights("k"), **SCALES, **BY_ONE})
    new = folded(model)
    assert "Resize" not in operators(new)
    assert operators(new).count("Pad") == 4
    assert_same(new, model, draw(*size), ROUNDING)


def test_what_lies_around_it_is_channels_last_too() -> None:
    """Once the graph is turned, no Transpose is left between its layers."""
    nodes = [convolution("x", "c", "j"), resize("c"), convolution("up", "f", "k"), convolution("f", "y", "l")]
    model = graph(nodes, {**weights("j"), **weights("k"), **weights("l"), **SCALES})
    new, _ = rewritten(model, fold_upsampling_last, turn_channels_last)
    assert operators(new).count("Transpose") == 2
    assert operators(new).count("NhwcConv") == 6
    assert_same(new, model, X, 3 * ROUNDING)


ALONE = "it is not read by one convolution only"
REFUSALS: list[tuple[str, list[onnx.NodeProto], dict[str, Any]]] = [
    (ALONE, [*layer(), node("Relu", "up", "z")], {}),
    (ALONE, [*layer(), convolution("up", "z", "k")], {}),
    (ALONE, [resize(), node("Relu", "up", "y")], {}),
    ("its mode is linear, not nearest", [resize(mode="linear"), *layer()[1:]], {}),
    ("its scales are [1.0, 1.0, 2.0, 3.0], not [1, 1, 2, 2]", layer(), {"scales": np.array([1, 1, 2, 3], np.float32)}),
    ("its padding is [0, 0, 0, 0], not 1 on each side", layer(pads=[0, 0, 0, 0]), {}),
    ("its kernel is 1x1, not 3x3", layer(pads=[0, 0, 0, 0]), weights("k", kernel=(1, 1))),
    (
        "it is depthwise: reading and writing images takes its time, not multiplications",
        layer(group=8),
        weights("k", inputs=1),
    ),
    ("its mode is wrap, not edge or reflect", bordered("wrap"), BY_ONE),
    (ALONE, [*bordered("edge"), node("Relu", "framed", "z")], BY_ONE),
    (
        "its padding is [1, 1, 1, 1], not 0 after a Pad",
        [*bordered("edge")[:2], convolution("framed", "y", "k")],
        BY_ONE,
    ),
    ("sums of its weights overflow their type", layer(), {"kw": np.full((8, 8, 3, 3), 3e38, np.float32)}),
]


@pytest.mark.parametrize(("reason", "nodes", "tensors"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(reason: str, nodes: list[onnx.NodeProto], tensors: dict[str, Any]) -> None:
    outputs = [n.output[0] for n in nodes if n.output[0] in ("y", "z")]
    model = graph(nodes, {**weights("k"), **SCALES, **tensors}, outputs=outputs)
    assert [(r.node, r.reason) for r in refusals(model, fold_upsampling_last)] == [("at_up", reason)]


def test_shapes_that_are_not_known() -> None:
    model = graph(layer(), {**weights("k"), **SCALES}, inferred=False)
    assert [r.reason for r in refusals(model, fold_upsampling_last)] == ["its shape is not known"]


@pytest.mark.parametrize("kept", ["at_up", "at_framed", "at_y"])
def test_one_kept_node_keeps_the_convolutions(kept: str) -> None:
    keep = {kept}
    new = folded(graph(bordered("edge"), {**weights("k"), **SCALES, **BY_ONE}), keep=keep)
    assert [n.op_type for n in new.graph.node if n.name in keep].count("NhwcConv") == 4
    keep = {"another"}
    folded(graph(layer(), {**weights("k"), **SCALES}), keep=keep)
    assert keep == {"another"}


def test_sizes_that_are_computed() -> None:
    nodes = [
        node("Shape", "x", "all"),
        node("Mul", "all by", "sizes"),
        node("Resize", "x _ _ sizes", "up"),
        *layer()[1:],
    ]
    model = graph(nodes, {**weights("k"), "by": np.array([1, 1, 2, 2])})
    assert_same(folded(model), model, X, ROUNDING)


def test_the_new_values_have_their_shapes() -> None:
    model = ir.from_proto(graph(layer(), {**weights("k"), **SCALES}))
    fold_upsampling_last(model, set())
    (join,) = [n for n in model.graph if n.op_type == "Transpose" and n.outputs[0].name == "y"]
    assert join.inputs[0] is not None
    assert str(join.inputs[0].shape) == "[batch,2*height,2*width,8]" or join.inputs[0].shape[3] == 8
