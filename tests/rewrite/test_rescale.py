"""A rescaled graph is the graph itself, bit for bit, and what it stores fits."""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from exporters import Decoder, export_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from inflation import INFLATIONS, inflate
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vaedeploy.graph.graph import save_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.numerics.maxima import measure_maxima
from vaedeploy.rewrite.rescale import Rescale, rescale
from vaedeploy.rewrite.rescale.exponents import Bounds, Exponents
from vaedeploy.source import load_reference
from vaedeploy.values.kinds import Part

LIMIT = 65504.0
HELD = LIMIT / 2**3
BIG, SMALL = np.float32(3e6), np.float32(1e-7)  # no powers of two


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=f"at_{outputs.split()[0]}", **attributes)


def graph(
    nodes: list[onnx.NodeProto],
    tensors: dict[str, np.ndarray] | None = None,
    *,
    channels: int = 4,
    opset: int = 20,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """x (batch, channels, height, width) -> ``nodes`` -> y."""
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", dtype, ["batch", channels, "height", "width"])],
            [helper.make_tensor_value_info("y", dtype, None)],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in (tensors or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    for norm in nodes:
        if norm.op_type == "GroupNormalization":  # onnx does not infer its type
            model.graph.value_info.append(helper.make_tensor_value_info(norm.output[0], dtype, [None] * 4))
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model)
    return model


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def rescaled(
    model: onnx.ModelProto, feed: dict[str, np.ndarray], maxima: dict[str, float] | None = None
) -> tuple[onnx.ModelProto, Rescale]:
    """``model`` after the rule, which is shown to be the same bit for bit, and what the rule said."""
    new = ir.from_proto(model)
    result = rescale(new, maxima or measure_maxima(new, [feed]))
    proto = ir.to_proto(new)
    onnx.checker.check_model(proto, full_check=True)
    for found, expected in zip(run(proto, feed), run(model, feed), strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(found, expected, strict=True)
    return proto, result


def overflowing(model: onnx.ModelProto, feed: dict[str, np.ndarray], keep: frozenset[str] = frozenset()) -> list[str]:
    """Tensors that do not fit and are not between nodes of ``keep``, and constants that float16 does not hold."""
    model = onnx.shape_inference.infer_shapes(model)
    reads = {name for n in model.graph.node if n.name not in keep for name in (*n.input, *n.output)}
    names = [name for name, m in measure_maxima(ir.from_proto(model), [feed]).items() if not m <= HELD]
    constants = [t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    names += [name for name in constants if np.abs(arrays[name]).max(initial=0) > LIMIT]
    return [name for name in names if name in reads]


X = draw((2, 4, 6, 8))

# What a tensor h of millions may go through on its way to r, on which a linear operator makes numbers of one size.
PASSES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "Add of a constant": ([node("Add", "h c", "r")], {"c": BIG * draw((4, 1, 1))}),
    "Sub": ([node("Mul", "h c", "g"), node("Sub", "h g", "r")], {"c": draw((4, 1, 1))}),
    "Concat": ([node("Neg", "h", "g"), node("Concat", "h g", "r", axis=1)], {}),
    "Max and Min": ([node("Max", "h zero", "g"), node("Min", "g bound", "r")], {"zero": np.float32(0), "bound": BIG}),
    "Clip": ([node("Clip", "h low high", "r")], {"low": -BIG, "high": 2 * BIG}),
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


DECOMPOSED = [
    node("ReduceMean", "h axes", "mean"),
    node("Sub", "h mean", "d"),
    node("Pow", "d two", "d2"),
    node("ReduceMean", "d2 axes", "v"),
    node("Add", "v e", "ve"),
    node("Sqrt", "ve", "sd"),
]
AXES = {"axes": np.array([1]), "two": np.float32(2), "e": np.float32(1e3)}
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


def test_the_exponent_is_the_largest_that_fits() -> None:
    nodes = [node("Mul", "x c", "h"), node("InstanceNormalization", "h o z", "y", epsilon=0.25)]
    tensors = {"c": np.float32(1), "o": np.ones(4, np.float32), "z": np.zeros(4, np.float32)}
    for maximum, exponent in [(8188.0, 0), (8188.1, -1), (16376.0, -1), (16377.0, -2), (1e6, -7)]:
        new, result = rescaled(graph(nodes, tensors), {"x": X}, {"x": 1.0, "h": maximum, "y": 1.0})
        assert result.exponents == ({"h": exponent} if exponent else {})
        assert helper.get_node_attr_value(new.graph.node[1], "epsilon") == 0.25 * 4.0**exponent
    for limit, headroom, exponent in [(65504.0, 0, -4), (65504.0, 5, -9), (2.0**20, 0, 0)]:
        found = rescale(ir.from_proto(graph(nodes, tensors)), {"h": 1e6}, limit=limit, headroom=headroom)
        assert found.exponents.get("h", 0) == exponent


def test_what_fits_is_left_alone() -> None:
    model = ir.from_proto(graph([node("Conv", "x w", "h"), node("Sigmoid", "h", "y")], {"w": draw((4, 4, 3, 3))}))
    before = ir.to_proto(model).SerializeToString()
    result = rescale(model, measure_maxima(model, [{"x": X}]))
    assert (result.outcome.matches, result.outcome.refusals, result.components) == (0, (), ())
    assert ir.to_proto(model).SerializeToString() == before


def test_weights_are_left_alone_where_the_layer_is_linear_in_the_stream() -> None:
    """Two parts of a stream that need exponents of their own, with a shortcut between them, take the same."""
    nodes = [
        node("Conv", "x w1 b1", "h"),
        node("Conv", "h w2 b2", "g"),
        node("InstanceNormalization", "g o z", "n"),
        node("Tanh", "n", "y"),
    ]
    tensors = {
        "w1": 1e4 * draw((4, 4, 1, 1)),
        "b1": draw((4,)),
        "w2": np.float32(0.1) * draw((4, 4, 1, 1)),
        "b2": draw((4,)),
        "o": np.ones(4, np.float32),
        "z": np.zeros(4, np.float32),
    }
    new, result = rescaled(graph(nodes, tensors), {"x": X})
    assert [c.tensors for c in result.components] == [("h",), ("g",)]
    exponent, shared = result.exponents["h"], result.exponents["g"]
    assert exponent == shared < 0
    stored = {t.name: numpy_helper.to_array(t) for t in new.graph.initializer}
    np.testing.assert_array_equal(stored["w2"], tensors["w2"])
    np.testing.assert_array_equal(stored["b2"], np.ldexp(tensors["b2"], exponent))
    np.testing.assert_array_equal(stored["w1"], np.ldexp(tensors["w1"], exponent))


def test_weights_that_float16_does_not_hold_are_scaled() -> None:
    nodes = [node("Conv", "x w", "h"), node("Relu", "h", "g"), node("Conv", "g v", "s"), node("Tanh", "s", "y")]
    tensors = {"w": 1e6 * draw((4, 4, 1, 1)), "v": SMALL * draw((4, 4, 1, 1))}
    tiny = {"x": np.float32(1e-6) * X}
    assert overflowing(graph(nodes, tensors), tiny) == ["w"]
    new, result = rescaled(graph(nodes, tensors), tiny)
    assert (overflowing(new, tiny), result.outcome.refusals) == ([], ())


def test_a_shared_constant_is_stored_once_for_each_exponent() -> None:
    nodes = [
        node("Mul", "x big", "h"),
        node("Add", "h c", "g"),
        node("Mul", "g small", "f"),
        node("Add", "f c", "e"),
        node("Add", "x c", "d"),
        node("Sub", "e d", "s"),
        node("Tanh", "s", "y"),
    ]
    tensors = {"big": BIG, "small": SMALL, "c": draw((4, 1, 1))}
    new, result = rescaled(graph(nodes, tensors), {"x": X})
    exponent = result.exponents["h"]
    stored = {t.name: numpy_helper.to_array(t) for t in new.graph.initializer}
    np.testing.assert_array_equal(stored["c"], tensors["c"])
    np.testing.assert_array_equal(stored[f"c.exponent{exponent}"], np.ldexp(tensors["c"], exponent))
    assert sorted(stored) == ["big", "c", f"c.exponent{exponent}", "small"]


def test_constants_of_nodes_are_scaled_and_their_nodes_removed() -> None:
    value = numpy_helper.from_array(BIG, "")
    nodes = [
        helper.make_node("Constant", [], ["c"], value=value),
        node("Mul", "x c", "h"),
        node("InstanceNormalization", "h o z", "y"),
    ]
    model = graph(nodes, {"o": np.ones(4, np.float32), "z": np.zeros(4, np.float32)})
    new, _ = rescaled(model, {"x": X})
    assert [n.op_type for n in new.graph.node] == ["Mul", "InstanceNormalization"]
    assert overflowing(new, {"x": X}) == []


def attention(q: float, k: float, v: float, scale: float = 0.21, *, after: bool = False) -> onnx.ModelProto:
    """A residual attention block; its three linear layers are q, k and v times their usual size.

    scale: what queries and keys are multiplied with, each; ``after``, what their products are.
    """
    nodes = [
        node("Mul", "x one", "stream"),
        node("Reshape", "stream to", "flat"),
        node("LayerNormalization", "flat o", "t"),
        *(node("MatMul", f"t w{i}", f"m{i}") for i in "qkv"),
        *(node("Add", f"m{i} b{i}", i) for i in "qkv"),
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        *([node("MatMul", "q kt", "raw"), node("Mul", "raw c", "scores")] if after else []),
        *([] if after else [node("Mul", "q c", "qs"), node("Mul", "kt c", "ks"), node("MatMul", "qs ks", "scores")]),
        node("Softmax", "scores", "p", axis=-1),
        node("MatMul", "p v", "a"),
        node("MatMul", "a wo", "o1"),
        node("Add", "o1 flat", "o2"),
        node("LayerNormalization", "o2 o", "y"),
    ]
    sizes = {"q": q, "k": k, "v": v}
    tensors = {
        **{f"w{i}": np.float32(size) * draw((8, 8), ord(i)) for i, size in sizes.items()},
        **{f"b{i}": np.float32(size) * draw((8,), ord(i)) for i, size in sizes.items()},
        "wo": draw((8, 8), 9),
        "o": np.ones(8, np.float32),
        "to": np.array([0, -1, 8]),
        "c": np.float32(scale),
        "one": np.float32(1),
    }
    return graph(nodes, tensors)


@pytest.mark.parametrize(
    ("sizes", "after"),
    [((3e4, 1e-4, 1), False), ((1, 1, 1e5), False), ((300, 300, 1, 1e-4), True), ((1e5, 0.1, 1e4, 1e-4), True)],
)
def test_attention_stays_finite(sizes: tuple[float, ...], after: bool) -> None:
    """Too large are in turn the queries, the values, the scores before they are scaled down, and all three."""
    model = attention(*sizes, after=after)
    assert overflowing(model, {"x": X})
    new, result = rescaled(model, {"x": X})
    assert (result.outcome.refusals, result.keep_fp32, overflowing(new, {"x": X})) == ((), frozenset(), [])


def test_only_what_overflows_is_scaled() -> None:
    """Queries or keys that fit once the graph itself has scaled them down: no other tensor is touched."""
    for sizes, names in [((2e3, 1e-3), ("mq", "q")), ((1e-3, 2e3), ("mk", "k", "kt"))]:
        _, result = rescaled(attention(*sizes, 1), {"x": X})
        assert [component.tensors for component in result.components] == [names]
        assert result.exponents[names[0]] < 0


def test_scores_that_overflow_stay_in_fp32() -> None:
    new, result = rescaled(attention(1e3, 1e3, 1), {"x": X})
    assert result.keep_fp32 == {"at_scores", "at_p"}
    (refusal,) = result.outcome.refusals
    assert refusal.node == "at_scores"
    assert refusal.reason.endswith("too much for the lower type, and Softmax at_p fixes its scale")
    assert overflowing(new, {"x": X}, result.keep_fp32) == []


def test_small_epsilons_stay_normal() -> None:
    """An epsilon of 2^-100 allows an exponent of -13 and not one of -14."""
    nodes = [node("Mul", "x c", "h"), node("LayerNormalization", "h o", "n", epsilon=2.0**-100), node("Tanh", "n", "y")]
    tensors = {"c": np.float32(1), "o": np.ones(8, np.float32)}
    fits, too_large = (
        {"x": 3.0, "h": HELD * 2**13, "n": 1.0, "y": 1.0},
        {"x": 3.0, "h": HELD * 2**14, "n": 1.0, "y": 1.0},
    )
    new, result = rescaled(graph(nodes, tensors), {"x": X}, fits)
    assert result.exponents == {"h": -13}
    assert helper.get_node_attr_value(new.graph.node[1], "epsilon") == 2.0**-126
    new, result = rescaled(graph(nodes, tensors), {"x": X}, too_large)
    assert result.exponents == {}
    assert helper.get_node_attr_value(new.graph.node[1], "epsilon") == 2.0**-100
    assert result.keep_fp32 == {"at_h", "at_n"}
    (refusal,) = result.outcome.refusals
    assert refusal.reason == (
        "tensor h reaches 1.34e+08, too much for the lower type, and with a smaller scale the epsilon of at_n would "
        "leave float32's normal range"
    )


def test_an_epsilon_that_is_a_constant_stays_normal_too() -> None:
    nodes = [node("Mul", "x c", "h"), *DECOMPOSED, node("Div", "d sd", "y")]
    model = ir.from_proto(graph(nodes, {**AXES, "c": np.float32(1), "e": np.float32(2.0**-100)}))
    result = rescale(model, dict.fromkeys(["x", "mean", "d2", "v", "ve", "sd", "y"], 1.0) | {"h": 1e9, "d": 1.0})
    assert result.exponents == {}
    (refusal,) = result.outcome.refusals
    assert refusal.reason.endswith("the constant of at_ve would leave float32's normal range")


IDENTITY = [node("Mul", "x c", "h"), node("Relu", "h", "r"), node("Mul", "r d", "y")]
SCALARS = {"c": np.float32(3), "d": np.float32(0.5)}
FIT = {"x": 1.0, "h": 1.0, "r": 1.0, "y": 1.0}
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
        "2 tensors were not measured and are taken to fit; the first is tensor h",
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
        "3 nodes compute in half precision already; rescale goes first",
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


def test_nodes_without_names_get_one() -> None:
    nodes = [node("Mul", "x c", "h"), node("Sigmoid", "h", "r"), node("Mul", "r d", "y")]
    for each in nodes:
        each.name = ""
    model = ir.from_proto(graph(nodes, SCALARS))
    assert rescale(model, {**FIT, "h": 1e6}).keep_fp32 == {"Mul_0", "Sigmoid_1"}
    assert [n.name for n in model.graph] == ["Mul_0", "Sigmoid_1", "Mul_2"]


def test_types_that_are_not_written_in_the_graph_are_inferred() -> None:
    nodes = [node("Mul", "x big", "h"), node("Relu", "h", "r"), node("Mul", "r small", "s"), node("Tanh", "s", "y")]
    model = graph(nodes, {"big": BIG, "small": SMALL})
    del model.graph.value_info[:]
    new, result = rescaled(model, {"x": X})
    assert set(result.exponents) == {"h", "r"}
    assert overflowing(new, {"x": X}) == []


def residual(data: st.DataObject, opset: int) -> onnx.ModelProto:
    """A stream of normalised, activated and convolved blocks, each of a size of its own."""
    nodes, tensors = [node("Conv", "x w_in b_in", "s0")], {}
    size = 10 ** data.draw(st.floats(-3, 9), "stream")
    tensors["w_in"], tensors["b_in"] = np.float32(size) * draw((4, 4, 1, 1)), np.float32(size) * draw((4,))
    blocks = data.draw(st.integers(1, 3), "blocks")
    for i in range(blocks):
        stream = f"s{i}"
        inner = 10 ** data.draw(st.floats(-3, 9), "inner")
        for j, (source, number) in enumerate([(stream, size), (f"c{i}0", inner)]):
            t = f"{i}{j}"
            kinds = ["InstanceNormalization", "LayerNormalization", "by hand"]
            kinds += ["GroupNormalization"] if opset >= 21 else []
            kind = data.draw(st.sampled_from(kinds), "norm")
            epsilon = float(number) ** 2 * 10 ** data.draw(st.floats(-9, 0), "epsilon")
            tensors[f"k{t}"], tensors[f"l{t}"] = draw((4,), i), draw((4,), j)
            if kind == "by hand":
                tensors |= {"axes": np.array([1, 2, 3]), f"e{t}": np.float32(epsilon)}
                nodes += [
                    node("ReduceMean", f"{source} axes", f"mean{t}"),
                    node("Sub", f"{source} mean{t}", f"d{t}"),
                    node("Mul", f"d{t} d{t}", f"q{t}"),
                    node("ReduceMean", f"q{t} axes", f"v{t}"),
                    node("Add", f"v{t} e{t}", f"f{t}"),
                    node("Sqrt", f"f{t}", f"g{t}"),
                    node("Div", f"d{t} g{t}", f"n{t}"),
                ]
            elif kind == "LayerNormalization":
                tensors[f"k{t}"] = np.ones((1, 1, 1), np.float32)
                nodes.append(node(kind, f"{source} k{t}", f"n{t}", axis=1, epsilon=epsilon))
                tensors[f"k{t}"] = draw((4, 1, 1), i)
                nodes[-1] = node("LayerNormalization", f"{source} k{t}", f"n{t}", axis=-3, epsilon=epsilon)
            else:
                groups = {"num_groups": 2} if kind == "GroupNormalization" else {}
                nodes.append(node(kind, f"{source} k{t} l{t}", f"n{t}", epsilon=epsilon, **groups))
            activation = data.draw(st.sampled_from(["SiLU", "Relu", "LeakyRelu", "none"]), "activation")
            if activation == "SiLU":
                nodes += [node("Sigmoid", f"n{t}", f"i{t}"), node("Mul", f"n{t} i{t}", f"a{t}")]
            else:
                nodes.append(node("Identity" if activation == "none" else activation, f"n{t}", f"a{t}"))
            factor = np.float32(inner if j == 0 else size)
            tensors[f"w{t}"], tensors[f"b{t}"] = factor * draw((4, 4, 3, 3), i), factor * draw((4,), j)
            nodes.append(node("Conv", f"a{t} w{t} b{t}", f"c{t}", pads=[1, 1, 1, 1]))
        nodes.append(node("Add", f"{stream} c{i}1", f"s{i + 1}"))
    ones = {"ones": np.ones(4, np.float32), "zeros": np.zeros(4, np.float32)}
    nodes += [node("InstanceNormalization", f"s{blocks} ones zeros", "last"), node("Tanh", "last", "y")]
    return graph(nodes, {**tensors, **ones}, opset=opset)


@settings(max_examples=30)
@given(data=st.data(), shape=st.tuples(st.integers(1, 2), st.just(4), st.integers(2, 7), st.integers(2, 7)))
def test_any_residual_network(data: st.DataObject, shape: tuple[int, ...]) -> None:
    model = residual(data, data.draw(st.sampled_from([20, 21]), "opset"))
    x = {"x": draw(shape, 3)}
    new, result = rescaled(model, x)
    # Nothing but what a non-linearity sees is out of reach, and that is normalised here.
    assert result.keep_fp32 == frozenset()
    assert overflowing(new, x) == []
    wide = {"x": x["x"].astype(np.float64)}
    np.testing.assert_array_equal(float64(new).run(None, wide)[0], float64(model).run(None, wide)[0])


def float64(model: onnx.ModelProto) -> ReferenceEvaluator:
    """The graph's own nodes in float64, in numpy."""
    wide = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*wide.graph.input, *wide.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del wide.graph.value_info[:]
    return ReferenceEvaluator(wide)


def test_relations_without_an_integer_solution_fix_their_unknowns() -> None:
    exponents = Exponents()
    exponents.relate([("a", 2), ("b", 3)], "why not")
    assert (exponents.form("a"), exponents.form("b")) == ((), ())
    assert exponents.fixed_by == {"a": "why not", "b": "why not"}


def test_parity() -> None:
    """2 e(root) = e(square): an odd bound on the square costs one bit more."""
    exponents = Exponents()
    exponents.relate([("root", 2), ("square", -1)], "Sqrt")
    choice = exponents.choose({"square": Bounds(upper=-5)})
    assert [choice.value(exponents.form(key)) for key in ("root", "square")] == [-3, -6]


def test_what_follows_is_solved_for() -> None:
    """Of the two weights and two results that share one relation too many, the weights give way."""
    exponents = Exponents(follows=lambda key: str(key).startswith("weight"))
    for side in "ab":
        exponents.relate([(f"result {side}", 1), (f"tensor {side}", -1), (f"weight {side}", -1)], "Mul")
    exponents.relate([("result a", 1), ("result b", 1)], "MatMul, Softmax")
    for side in "ab":
        choice = exponents.choose({f"tensor {side}": Bounds(upper=-5)})
        assert [choice.value(exponents.form(f"result {other}")) for other in "ab"] == [0, 0]
        assert choice.value(exponents.form(f"weight {side}")) == 5


def test_bounds_that_contradict_each_other_are_given_up() -> None:
    exponents = Exponents()
    exponents.relate([("sum", 1), ("a", -1), ("b", 1)], "Div")
    exponents.relate([("back", 1), ("b", -1), ("a", 1)], "Div")
    choice = exponents.choose({"sum": Bounds(upper=-1), "back": Bounds(upper=-1)})
    values = [choice.value(exponents.form(key)) for key in ("sum", "back")]
    assert sorted(values) == [-1, 1]
    assert list(choice.blocked) == [exponents.form("sum" if values[0] > 0 else "back")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "inflation", "part"),
    [
        ("small", "2^17 everywhere", "encoder"),
        ("small", "2^17 everywhere", "decoder"),
        ("full", "not powers of two", "decoder"),
    ],
)
def test_an_inflated_vae_is_repaired(part: Part, size: str, inflation: str, small_vae: Path, tmp_path: Path) -> None:
    """The same bit for bit, everything fits, nothing is left in fp32."""
    reference = load_reference(small_vae) if size == "small" else load_reference("mse840k", weights="random:0")
    half = getattr(reference, part)
    shape = (1, 4, 8, 12) if part == "decoder" else (1, 3, 64, 96)
    x = draw(shape) if part == "decoder" else draw(shape).clip(-1, 1)
    before = half(torch.from_numpy(x))
    inflate(half, *map(cycle, INFLATIONS[inflation]))
    # The same function, in other roundings: factors that are no powers of two cost a few digits of a float32.
    for found, expected in zip(as_tuple(half(torch.from_numpy(x))), as_tuple(before), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    traced = trace_graph(reference, part)
    feed = {traced.model.graph.inputs[0].name: x}
    maxima = measure_maxima(traced.model, [feed])
    assert sum(m > LIMIT for m in maxima.values()) > 20
    save_graph(traced, tmp_path / "inflated.onnx")
    model = ir.load(tmp_path / "inflated.onnx")
    result = rescale(model, maxima)
    assert (result.outcome.refusals, result.keep_fp32) == ((), frozenset())
    ir.save(model, tmp_path / "rescaled.onnx", external_data="rescaled.onnx.data")
    onnx.checker.check_model(tmp_path / "rescaled.onnx", full_check=True)
    for found, expected in zip(
        run_file(tmp_path / "rescaled.onnx", feed), run_file(tmp_path / "inflated.onnx", feed), strict=True
    ):
        np.testing.assert_array_equal(found, expected, strict=True)
    assert max(measure_maxima(tmp_path / "rescaled.onnx", [feed]).values()) <= HELD
    # Not reduced to nothing either: float16 has digits left for every tensor that was scaled.
    for component in result.components:
        assert component.exponent > 0 or math.ldexp(component.maximum, component.exponent) > 2**-4
    arrays = (value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value is not None)
    assert max(np.abs(array).max() for array in arrays if array.dtype == np.float32) <= LIMIT


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def run_file(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)


VAES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "AutoencoderKL": (
        diffusers.AutoencoderKL,
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
        },
    ),
    "AutoencoderTiny": (
        diffusers.AutoencoderTiny,
        {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
    ),
    "AutoencoderDC": (
        diffusers.AutoencoderDC,
        {
            "latent_channels": 4,
            "attention_head_dim": 16,  # with fewer, all may be negative before ReLU, and its attention 0 / 0
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 32),
            "decoder_block_out_channels": (8, 32),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "opset"),
    # Not AutoencoderDC at 17: torch's TorchScript exporter writes its attention with an axis that ONNX does not have.
    [(name, opset) for name in VAES for opset in (17, 18, 21) if (name, opset) != ("AutoencoderDC", 17)],
)
def test_graphs_of_other_exporters(name: str, opset: int, tmp_path: Path) -> None:
    """Under maxima that are made up, so that nearly every tensor is scaled: the same bit for bit all the same."""
    torch.manual_seed(0)
    kind, config = VAES[name]
    module = Decoder(kind(**config).eval().requires_grad_(False))
    export_decoder(module, tmp_path / "plain.onnx", opset)
    check_made_up_maxima(tmp_path / "plain.onnx", {"latent": draw((1, 4, 8, 6))}, tmp_path / "rescaled.onnx")


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_tiny_traced_modules(tiny_graphs: Path, part: Part, tmp_path: Path) -> None:
    x = draw((1, 4, 5, 7)) if part == "decoder" else draw((1, 3, 16, 24)).clip(-1, 1)
    feed = {"latent" if part == "decoder" else "image": x}
    check_made_up_maxima(tiny_graphs / f"{part}.onnx", feed, tmp_path / "rescaled.onnx")


def check_made_up_maxima(path: Path, feed: dict[str, np.ndarray], new: Path) -> None:
    """Claim that tensors are up to 2^16 times what they are; nothing but what non-linearities fix may be left over."""
    model = ir.load(path)
    rng = np.random.default_rng(0)
    claimed = {name: m * 2 ** rng.uniform(10, 16) for name, m in measure_maxima(model, [feed]).items()}
    result = rescale(model, claimed)
    assert result.components
    assert not [refusal for refusal in result.outcome.refusals if "measured" in refusal.reason]
    ir.save(model, new)
    onnx.checker.check_model(new, full_check=True)
    for found, expected in zip(run_file(new, feed), run_file(path, feed), strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)
    kept = {value.name for n in model.graph if n.name in result.keep_fp32 for value in (*n.inputs, *n.outputs) if value}
    for name, maximum in claimed.items():
        assert name in kept or math.ldexp(maximum, result.exponents.get(name, 0)) <= HELD
