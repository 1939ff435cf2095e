"""Which operators let a scale pass, which absorb it, and which fix their inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from scaled import (
    AXES,
    BIG,
    DECOMPOSED,
    FIT,
    SCALARS,
    SMALL,
    X,
    draw,
    graph,
    node,
    overflowing,
    rescaled,
)

from vaedeploy.rewrite.rescale import rescale

# What a tensor h of millions may go through on its way to r, on which a linear operator makes numbers of one size.
PASSES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "Add of a constant": ([node("Add", "h c", "r")], {"c": BIG * draw((4, 1, 1))}),
    "Sub": ([node("Mul", "h c", "g"), node("Sub", "h g", "r")], {"c": draw((4, 1, 1))}),
    "Concat": ([node("Neg", "h", "g"), node("Concat", "h g", "r", axis=1)], {}),
    "Max and Min": ([node("Max", "h zero", "g"), node("Min", "g bound", "r")], {"zero": np.float32(0), "bound": BIG}),
    "Clip": ([node("Clip", "h low high", "r")], {"low": -BIG, "high": np.float32(2 * BIG)}),
    "Where": (
        [node("Greater", "x zero", "b"), node("Where", "b h c", "r")],
        {"zero": np.float32(0), "c": BIG},
    ),
    "Pad": ([node("Pad", "h pads c", "r")], {"pads": np.array([0, 0, 1, 1, 0, 0, 2, 2]), "c": BIG}),
    "Relu": ([node("Relu", "h", "r")], {}),
    "LeakyRelu": ([node("LeakyRelu", "h", "r", alpha=0.3)], {}),
    "PRelu": ([node("PRelu", "h slope", "r")], {"slope": draw((4, 1, 1))}),
    "Abs": ([node("Abs", "h", "r")], {}),
    "Cast to double and back": ([node("Cast", "h", "g", to=11), node("Cast", "g", "r", to=1)], {}),
    "Resize": (
        [node("Resize", "h _ scales", "r", mode="linear")],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "Reshape, Transpose": (
        [node("Reshape", "h to", "g"), node("Transpose", "g", "r", perm=[0, 2, 1])],
        {"to": np.array([0, 4, -1])},
    ),
    "DepthToSpace": ([node("DepthToSpace", "h", "r", blocksize=2)], {}),
    "Split, Slice": (
        [node("Split", "h", "g1 g2", axis=1, num_outputs=2), node("Slice", "g2 start end", "r")],
        {"start": np.array([1]), "end": np.array([2])},
    ),
    "ReduceMean": ([node("ReduceMean", "h axes", "r")], {"axes": np.array([-1])}),
    "AveragePool, MaxPool": (
        [node("AveragePool", "h", "g", kernel_shape=[2, 2]), node("MaxPool", "g", "r", kernel_shape=[2, 2])],
        {},
    ),
    "Conv": ([node("Conv", "h w b", "r")], {"w": draw((4, 4, 1, 1)), "b": BIG * draw((4,))}),
    "ConvTranspose": (
        [node("ConvTranspose", "h w b", "r", strides=[2, 2])],
        {"w": draw((4, 3, 2, 2)), "b": BIG * draw((3,))},
    ),
    "MatMul": ([node("MatMul", "h w", "r")], {"w": draw((8, 3))}),
    "Gemm": (
        [node("Reshape", "h to", "g"), node("Gemm", "g w b", "r", alpha=0.7, beta=1.3)],
        {"to": np.array([-1, 8]), "w": draw((8, 3)), "b": BIG * draw((3,))},
    ),
    "a weight behind Transpose": ([node("Transpose", "w", "v"), node("MatMul", "h v", "r")], {"w": draw((3, 8))}),
    "Mul of two": ([node("Mul", "h x", "r")], {}),
    "Div by a constant": ([node("Div", "h c", "r")], {"c": np.float32(0.7)}),
    "a square and its root": ([node("Mul", "h h", "g"), node("Sqrt", "g", "r")], {}),
    "a cube": ([node("Pow", "h three", "r")], {"three": np.float32(3), "small": np.float32(1e-20)}),
    "half a power": ([node("Abs", "h", "g"), node("Pow", "g half", "r")], {"half": np.float32(0.5)}),
    "Reciprocal": ([node("Reciprocal", "h", "g"), node("Div", "x g", "r")], {}),
    "ReduceSumSquare": ([node("ReduceSumSquare", "h axes", "r")], {"axes": np.array([-1]), "small": np.float32(1e-14)}),
    "BatchNormalization": (
        [node("BatchNormalization", "h k b m v", "r")],
        {"k": draw((4,)), "b": BIG * draw((4,)), "m": BIG * draw((4,)), "v": np.full(4, 0.3, np.float32)},
    ),
}


@pytest.mark.parametrize(("nodes", "tensors"), PASSES.values(), ids=PASSES)
def test_scales_pass(nodes: list[onnx.NodeProto], tensors: dict[str, Any]) -> None:
    ends = node("Mul", "x big", "h"), node("Mul", "r small", "s"), node("Tanh", "s", "y")
    model = graph([ends[0], *nodes, *ends[1:]], {"big": BIG, "small": SMALL, **tensors})
    assert overflowing(model, {"x": X})
    new, result = rescaled(model, {"x": X})
    assert (result.outcome.rule, result.outcome.refusals, result.keep_fp32) == ("rescale", (), frozenset())
    assert result.outcome.matches == len(result.components) > 0
    assert overflowing(new, {"x": X}) == []


COLUMN = draw((4, 1, 1))
NORMS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], int]] = {
    "InstanceNormalization": (
        [node("InstanceNormalization", "h s b", "n", epsilon=1e9)],
        {"s": draw((4,)), "b": draw((4,))},
        20,
    ),
    "GroupNormalization": (
        [node("GroupNormalization", "h s b", "n", epsilon=1e9, num_groups=2)],
        {"s": draw((4,)), "b": draw((4,))},
        21,
    ),
    "LayerNormalization": ([node("LayerNormalization", "h s", "n", axis=1)], {"s": COLUMN}, 20),
    "RMSNormalization": ([node("RMSNormalization", "h s", "n", epsilon=1e9, axis=1)], {"s": COLUMN}, 23),
    "LpNormalization": ([node("LpNormalization", "h", "n", axis=1)], {}, 20),
    "by Pow and Div": ([*DECOMPOSED, node("Div", "d sd", "n")], AXES, 20),
    "by Reciprocal": ([*DECOMPOSED, node("Reciprocal", "sd", "i"), node("Mul", "d i", "n")], AXES, 20),
    "by gamma over deviation": (
        [*DECOMPOSED, node("Div", "gamma sd", "i"), node("Mul", "d i", "n")],
        {**AXES, "gamma": COLUMN},
        20,
    ),
}


@pytest.mark.parametrize(("nodes", "tensors", "opset"), NORMS.values(), ids=NORMS)
def test_normalisations_absorb_scales(nodes: list[onnx.NodeProto], tensors: dict[str, Any], opset: int) -> None:
    """Epsilons are of the size of the variances here, so that one that were not scaled would show."""
    model = graph([node("Mul", "x big", "h"), *nodes, node("Tanh", "n", "y")], {**tensors, "big": BIG}, opset=opset)
    new, result = rescaled(model, {"x": X})
    assert overflowing(new, {"x": X}, result.keep_fp32) == []
    # 1 / deviation is small; scaled up as the deviation is scaled down, it may be all that is left to refuse.
    assert result.keep_fp32 == frozenset()
    assert result.exponents["h"] <= -10


IDENTITY = [node("Mul", "x c", "h"), node("Relu", "h", "r"), node("Mul", "r d", "y")]
REFUSALS: list[tuple[str, str, onnx.ModelProto, dict[str, float], set[str]]] = [
    (
        "at_h",
        "tensor h reaches 1e+06, too much for the lower type, and Sigmoid at_r fixes its scale",
        graph([node("Mul", "x c", "h"), node("Sigmoid", "h", "r"), node("Mul", "r d", "y")], SCALARS),
        {**FIT, "h": 1e6},
        {"at_h", "at_r"},
    ),
    (
        "at_y",
        "tensor y reaches 1e+06, too much for the lower type, and the graph's interface fixes its scale",
        graph(IDENTITY, SCALARS),
        {**FIT, "y": 1e6},
        {"at_y"},
    ),
    (
        "at_h",
        "tensor x reaches 1e+06, too much for the lower type, and the graph's interface fixes its scale",
        graph(IDENTITY, SCALARS),
        {**FIT, "x": 1e6},
        {"at_h"},
    ),
    (
        "at_h",
        "tensor h was not finite when it was measured",
        graph(IDENTITY, SCALARS),
        {**FIT, "h": math.inf},
        {"at_h", "at_r"},
    ),
    (
        "at_h",
        "tensor h was not finite when it was measured",
        graph(IDENTITY, SCALARS),
        {**FIT, "h": math.nan},
        {"at_h", "at_r"},
    ),
    (
        "at_h",
        "2 tensors not measured and taken to fit; the first is tensor h",
        graph(IDENTITY, SCALARS),
        {"x": 1.0, "y": 1.0},
        set(),
    ),
    (
        "at_h",
        "constant c reaches 1e+06, too much for the lower type, and Tanh at_y fixes its scale",
        graph([node("Mul", "x c", "h"), node("Tanh", "h", "y")], {"c": np.float32(1e6)}),
        {"x": 1.0, "h": 1.0, "y": 1.0},
        {"at_h"},
    ),
    (
        "at_h",
        "3 nodes in half precision already; rescale goes first",
        graph(
            IDENTITY,
            {name: array.astype(np.float16) for name, array in SCALARS.items()},
            dtype=TensorProto.FLOAT16,
        ),
        {**FIT, "h": 1e6},
        set(),
    ),
    (
        "at_g",
        "tensor g reaches 8e+03, too much for the lower type, and the scale of another tensor makes it 2^7 times that",
        graph(
            [
                node("Mul", "x c", "h"),
                node("Mul", "x d", "g"),
                node("Mul", "h g", "f"),
                node("Tanh", "f", "y"),
            ],
            SCALARS,
        ),
        {"x": 1.0, "h": 1e6, "g": 8000.0, "f": 1.0, "y": 1.0},
        {"at_g", "at_f"},
    ),
]


@pytest.mark.parametrize(("name", "reason", "model", "maxima", "keep"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(name: str, reason: str, model: onnx.ModelProto, maxima: dict[str, float], keep: set[str]) -> None:
    result = rescale(ir.from_proto(model), maxima)
    assert [(refusal.node, refusal.reason) for refusal in result.outcome.refusals] == [(name, reason)]
    assert result.keep_fp32 == keep


@pytest.mark.parametrize(
    ("nodes", "tensors"),
    [
        ([node("Gelu", "h", "r")], {}),
        ([node("Pow", "h c", "r")], {"c": np.float32(1.5)}),
        ([node("Pow", "x h", "r")], {}),
        ([node("Resize", "h roi _ to", "r", coordinate_transformation_mode="tf_crop_and_resize")],
         {"roi": np.array([0, 0, 0, 0, 1, 1, 1, 2], np.float32), "to": np.array([2, 4, 6, 8])}),
        ([node("LayerNormalization", "h o", "r mean")], {"o": np.ones(8, np.float32)}),
        ([node("Cast", "h", "i", to=TensorProto.INT64), node("Cast", "i", "r", to=TensorProto.FLOAT)], {}),
    ],
)  # fmt: skip
def test_what_is_not_known_to_scale_fixes_its_inputs(nodes: list[onnx.NodeProto], tensors: dict[str, Any]) -> None:
    use = [node("Add", "r mean", "y")] if "mean" in nodes[-1].output else [node("Identity", "r", "y")]
    model = ir.from_proto(graph([node("Mul", "x big", "h"), *nodes, *use], {**tensors, "big": np.float32(1)}))
    names = [value.name for n in model.graph for value in n.outputs]
    result = rescale(model, dict.fromkeys([*names, "x"], 1.0) | {"h": 1e6})
    assert result.exponents == {}
    assert [refusal.node for refusal in result.outcome.refusals] == ["at_h"]


def test_control_flow_fixes_what_it_touches() -> None:
    value = helper.make_tensor_value_info("r1", TensorProto.FLOAT, None)
    other = helper.make_tensor_value_info("r2", TensorProto.FLOAT, None)
    branches = {
        "then_branch": helper.make_graph([node("Neg", "h", "r1")], "then", [], [value]),
        "else_branch": helper.make_graph([node("Abs", "h", "r2")], "else", [], [other]),
    }
    nodes = [
        node("Mul", "x big", "h"),
        node("ReduceMax", "x", "m", keepdims=0),
        node("Greater", "m zero", "positive"),
        helper.make_node("If", ["positive"], ["r"], name="if", **branches),
        node("Mul", "r small", "y"),
    ]
    model = graph(nodes, {"big": BIG, "small": SMALL, "zero": np.float32(0)})
    _, result = rescaled(model, {"x": X})
    assert result.exponents == {}
    assert {"at_h", "if", "at_y"} <= result.keep_fp32
