"""Channels of zeros change no number that is read: compared exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fused import assert_same, convolution, draw, graph, node, operators, rewritten, weights

from vaedeploy.rewrite.cuda.align import align_channels
from vaedeploy.rewrite.cuda.channels_last import turn_channels_last
from vaedeploy.rewrite.outcome import Outcome

PADDED = ["Transpose", "Pad", "NhwcConv", "Transpose"]

CUT = ["Transpose", "NhwcConv", "Slice", "Transpose"]

BOTH = ["Transpose", "Pad", "NhwcConv", "Slice", "Transpose"]


def align(model: ir.Model, _: set[str]) -> Outcome:
    return align_channels(model)


def aligned(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Outcome]:
    new, (_, outcome) = rewritten(model, turn_channels_last, align)
    return new, outcome


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [(8, 16, None), (4, 8, PADDED), (8, 3, CUT), (3, 13, BOTH), (16, 20, CUT)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_channels_are_multiples_of_eight(inputs: int, outputs: int, expected: list[str] | None, bias: bool) -> None:
    nodes = [convolution("x", "y", "k")] if bias else [node("Conv", "x kw", "y", pads=[1, 1, 1, 1])]
    model = graph(nodes, weights("k", outputs, inputs), shapes={"x": ("batch", inputs, "height", "width")})
    new, outcome = aligned(model)
    assert (outcome.rule, outcome.matches, outcome.refusals) == ("align_channels", int(expected is not None), ())
    assert operators(new) == (expected or ["Transpose", "NhwcConv", "Transpose"])
    (kernel,) = [t.dims for t in new.graph.initializer if len(t.dims) == 4]
    assert (kernel[0] % 8, kernel[3] % 8) == (0, 0)
    # A sum in float32 of 27 products or more may be in another order where zeros stand between them.
    assert_same(new, model, draw(2, inputs, 5, 7), 1e-6)


def test_a_result_that_is_read_twice_and_an_output() -> None:
    nodes = [convolution("x", "c", "k"), node("Sigmoid", "c", "s"), node("Mul", "c s", "y")]
    model = graph(nodes, weights("k", 3), outputs=("y", "c"))
    new, _ = aligned(model)
    assert_same(new, model, draw(2, 8, 5, 7), 1e-6)


def test_convolutions_in_a_row() -> None:
    nodes = [convolution("x", "c", "k"), convolution("c", "y", "l")]
    model = graph(nodes, {**weights("k", 5), **weights("l", 3, 5)})
    new, outcome = aligned(model)
    assert outcome.matches == 2
    assert_same(new, model, draw(2, 8, 5, 7), 1e-6)


def test_groups_are_left_alone() -> None:
    model = graph([convolution("x", "y", "k", group=4)], weights("k", 12, 2))
    new, outcome = aligned(model)
    assert [refusal.reason for refusal in outcome.refusals] == ["its channels are in groups"]
    assert_same(new, model, draw(2, 8, 5, 7))


def test_a_bias_that_is_computed_is_left_alone() -> None:
    nodes = [node("Shape", "x", "sizes"), node("Cast", "sizes", "b", to=1), node("Conv", "x kw b", "y")]
    model = graph(nodes, weights("k", 4))
    new, outcome = aligned(model)
    assert [refusal.reason for refusal in outcome.refusals] == ["its weights or its bias are not constant"]
    assert_same(new, model, draw(2, 8, 5, 7))


def test_a_convolution_that_came_with_the_graph_has_no_shape() -> None:
    attributes: dict[str, Any] = {"domain": "com.microsoft", "kernel_shape": [3, 3]}
    nodes = [node("NhwcConv", "x w", "y", **attributes)]
    model = ir.from_proto(graph(nodes, {"w": draw(3, 3, 3, 8)}, inferred=False))
    outcome = align_channels(model)
    assert (outcome.matches, [r.reason for r in outcome.refusals]) == (0, ["its shape is not known"])
    assert np.shape(model.graph.initializers["w"].const_value) == (3, 3, 3, 8)
