"""A rescaled graph is the graph itself, bit for bit, and what it stores fits into float16."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from scaled import (
    AXES,
    BIG,
    DECOMPOSED,
    FIT,
    HELD,
    SCALARS,
    SMALL,
    X,
    draw,
    graph,
    node,
    overflowing,
    rescaled,
)

from vaedeploy.numerics.maxima import measure_maxima
from vaedeploy.rewrite.rescale import rescale


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
