"""The rewritten graph is the unrewritten one: never farther from float64, and only where its equation holds."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from examples import at_most
from group_norms import EPSILON, group_norm
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vaedeploy.graph.graph import Graph
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.rewrite.normalization import split_means


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    return ir.to_proto(rewrite_graph(Graph(ir.from_proto(model), "decoder")).graph.model)


def float64(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Run the graph's own nodes in float64, in numpy."""
    wide = copy.deepcopy(model)
    for tensor in wide.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float64), tensor.name))
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value_float":
                value = numpy_helper.from_array(np.float64(attribute.f), "")
                attribute.CopyFrom(helper.make_attribute("value", value))
    for value in (*wide.graph.input, *wide.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del wide.graph.value_info[:]
    return ReferenceEvaluator(wide).run(None, {"x": x.astype(np.float64)})[0]


def exact(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """y by its definition, in float64."""
    tensors = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    grouped = x.astype(np.float64).reshape(len(x), len(tensors["ones"]), -1)
    mean, variance = grouped.mean(2, keepdims=True), grouped.var(2, keepdims=True)
    normal = ((grouped - mean) / np.sqrt(variance + np.float32(EPSILON))).reshape(x.shape)
    return normal * tensors["gamma"] + tensors["beta"]


@at_most(40)
@given(
    batch=st.integers(1, 3),
    per_group=st.integers(1, 4),
    groups=st.integers(1, 5),
    height=st.integers(1, 9),
    width=st.integers(2, 11),
    rank=st.sampled_from([3, 4]),
    seed=st.integers(0, 2**31),
)
def test_equation_holds_in_float64(
    batch: int, per_group: int, groups: int, height: int, width: int, rank: int, seed: int
) -> None:
    model = group_norm(per_group * groups, groups, rank)
    new = rewritten(model)
    assert "InstanceNormalization" not in {n.op_type for n in new.graph.node}
    shape = (*(batch, per_group * groups, height)[: rank - 1], width)
    x = np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)
    # Two orders of summation in float64: a thousand roundings of 1e-16, over a deviation that may be small.
    np.testing.assert_allclose(float64(new, x), exact(model, x), rtol=1e-9, atol=1e-9)


def test_large_areas_keep_their_digits() -> None:
    """What the rule is for: the loss of digits that it removes, and that it removes it."""
    model = group_norm(8, 2)
    x = np.random.default_rng(0).normal(3, 1, (1, 8, 512, 512)).astype(np.float32)
    expected = exact(model, x)

    def error(which: onnx.ModelProto) -> float:
        session = onnxruntime.InferenceSession(which.SerializeToString(), providers=["CPUExecutionProvider"])
        return float(np.linalg.norm(session.run(None, {"x": x})[0] - expected) / np.linalg.norm(expected))

    assert error(rewritten(model)) < 5e-7 < 5e-6 < error(model)


def group_normalization(channels: int, groups: int, rank: int, weights: int | None = None) -> onnx.ModelProto:
    """The operator that exporters write from opset 21 on, with the weights of ``group_norm``."""
    tensors = {t.name: numpy_helper.to_array(t) for t in group_norm(channels, groups, rank).graph.initializer}
    names = ["batch", channels, "height", "width"][:rank]
    graph = helper.make_graph(
        [helper.make_node("GroupNormalization", ["x", "gamma", "beta"], ["y"], epsilon=EPSILON, num_groups=groups)],
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, names)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, names)],
        [numpy_helper.from_array(tensors[n].reshape(-1)[:weights], n) for n in ("gamma", "beta")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model if weights else onnx.shape_inference.infer_shapes(model)


@at_most(20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from([3, 4]), st.integers(0, 2**31))
def test_the_operator_becomes_the_same(batch: int, per_group: int, groups: int, rank: int, seed: int) -> None:
    new = rewritten(group_normalization(per_group * groups, groups, rank))
    assert "GroupNormalization" not in {n.op_type for n in new.graph.node}
    x = np.random.default_rng(seed).normal(1, 2, (batch, per_group * groups, 5, 7)[:rank]).astype(np.float32)
    expected = exact(group_norm(per_group * groups, groups, rank), x)
    np.testing.assert_allclose(float64(new, x), expected, rtol=1e-9, atol=1e-9)


def test_an_operator_that_is_not_as_it_should_be() -> None:
    outcome = split_means(ir.from_proto(group_normalization(8, 4, 4, weights=4)))
    assert [refusal.reason for refusal in outcome.refusals] == ["scale or bias is not one number per channel"]


def test_older_opsets_and_other_types_are_left_alone() -> None:
    old = ir.from_proto(group_norm())
    old.graph.opset_imports[""] = 17
    half = ir.from_proto(group_norm())
    half.graph.inputs[0].dtype = ir.DataType.FLOAT16
    for model, reason in (
        (old, "opset 17 is older than 18"),
        (half, "it is not float32; lower the precision after this rule"),
    ):
        outcome = split_means(model)
        assert outcome.matches == 0
        assert [refusal.reason for refusal in outcome.refusals] == [reason]


REFUSALS = {
    "the input is not reshaped to (batch, groups, rest)": {"reshaped": (1, 4, -1)},
    "InstanceNormalization's scale is not 1": {"inner_scale": 2.0},
    "the result is not reshaped back to the input's shape": {"back": "fixed"},
    "scale or bias is not one number per channel": {"scalar_gamma": True},
    "the number of channels is not known": {"known_channels": False},
}


@pytest.mark.parametrize(("reason", "options"), REFUSALS.items(), ids=REFUSALS)
def test_refusals(reason: str, options: dict[str, object]) -> None:
    model = ir.from_proto(group_norm(**options))
    outcome = split_means(model)
    assert outcome.matches == 0
    assert [refusal.reason for refusal in outcome.refusals] == [reason]
    assert "InstanceNormalization" in {node.op_type for node in model.graph}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("groups", "the input is not reshaped to (batch, groups, rest)"),
        ("ones", "InstanceNormalization's scale is not 1"),
        ("zeros", "InstanceNormalization's bias is not 0"),
    ],
)
def test_what_a_caller_may_give_is_no_constant(name: str, reason: str) -> None:
    """An initializer that is an input as well is only what it is where the caller gives nothing."""
    model = ir.from_proto(group_norm())
    model.graph.inputs.append(model.graph.initializers[name])
    outcome = split_means(model)
    assert outcome.matches == 0
    assert [refusal.reason for refusal in outcome.refusals] == [reason]
