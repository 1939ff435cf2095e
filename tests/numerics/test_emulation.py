"""Half precision emulated in float32: bit for bit torch's where an operator leaves no choice, and as short in range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from examples import at_most
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vaedeploy.errors import BackendError
from vaedeploy.numerics.emulation import emulate, emulating_model

TYPES = {
    "fp16": (TensorProto.FLOAT16, np.dtype(np.float16), torch.float16),
    "bf16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16), torch.bfloat16),
}
PRECISIONS = tuple(TYPES)
UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""Half a unit in the last place of 1: how far rounding moves a number, relative to it."""


def half_graph(
    operator: str,
    precision: str,
    variables: int = 1,
    weights: dict[str, np.ndarray] | None = None,
    *,
    then: tuple[str, ...] = (),
    interface: int = TensorProto.FLOAT,
    **attributes: Any,
) -> ir.Model:
    """x0, x1, ... float32 -> Cast -> ``operator`` (and ``then``, one after another) in half precision -> Cast -> y."""
    kind, dtype, _ = TYPES[precision]
    names = [f"x{i}" for i in range(variables)]
    inner = interface == kind
    nodes = [] if inner else [helper.make_node("Cast", [n], [f"{n}_half"], to=kind) for n in names]
    reads = [n if inner else f"{n}_half" for n in names] + list(weights or {})
    chain = (operator, *then)
    shape = [None] * (4 if operator == "Conv" else 1)
    gives = [*(f"h{i}" for i in range(len(then))), "y" if inner else "h"]
    for i, op in enumerate(chain):
        attrs = attributes if i == 0 else {}
        nodes.append(helper.make_node(op, reads if i == 0 else [gives[i - 1], *(weights or {})], [gives[i]], **attrs))
    if not inner:
        nodes.append(helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        operator,
        [helper.make_tensor_value_info(n, interface, shape) for n in names],
        [helper.make_tensor_value_info("y", interface, shape)],
        [numpy_helper.from_array(w.astype(dtype), n) for n, w in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32, as feeds and weights are. A float64 number that is first rounded to float32 can round to another
    float16 or bfloat16 than the one that it rounds to at once."""
    return rng.normal(size=shape).astype(np.float32)


def in_half(precision: str, *arrays: np.ndarray) -> list[torch.Tensor]:
    assert all(a.dtype == np.float32 for a in arrays), "what is compared must be rounded once, from the same float32"
    return [torch.from_numpy(a).to(TYPES[precision][2]) for a in arrays]


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal bits, the sign of zero included; any NaN equals any other."""
    either = np.isnan(found) & np.isnan(expected)
    return bool(np.all((found.view(np.uint32) == expected.view(np.uint32)) | either))


def hard_to_round(dtype: np.dtype[Any]) -> np.ndarray:
    """Any float32, ties, subnormals, and what is next to the largest number."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 60_000, dtype=np.uint32)
    dropped = 13 if dtype == np.float16 else 16
    ties = (bits >> dropped << dropped | 1 << (dropped - 1)).astype(np.uint32)
    edges = [65504, 65519.99, 65520, 1e9, -65520, np.inf, -np.inf, np.nan, 2**-24, 2**-25, -(2**-26), 0.0, -0.0, 1e-40]
    edges += [3.3895e38, 3.3961775e38, 3.4028e38]  # bfloat16's largest number, and on
    small = rng.normal(0, 1e-6, 10_000)
    return np.concatenate([bits.view(np.float32), ties.view(np.float32), np.float32(edges), np.float32(small)])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("level", ["DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"])
def test_rounding_survives_every_optimisation(precision: str, level: str) -> None:
    """A pair of Casts in the middle of a graph is numpy's rounding, whatever ONNX Runtime does to the graph."""
    _, dtype, _ = TYPES[precision]
    model = ir.to_proto(emulating_model(half_graph("Sigmoid", precision, then=("Sigmoid",))))
    rounding = [n.name for n in model.graph.node if n.op_type == "Cast"]
    assert len(rounding) >= 4  # after each node
    for node in model.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type = "Identity"  # rounding alone
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = hard_to_round(dtype)
    with np.errstate(all="ignore"):
        expected = x.astype(dtype).astype(np.float32)
    assert same_bits(session.run(None, {"x0": x})[0], expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("operator", "function"), [("Add", torch.add), ("Mul", torch.mul), ("Sub", torch.sub)])
@at_most(15)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([1e-6, 1.0, 300.0, 4e4]))
def test_arithmetic_is_torchs_bit_for_bit(
    operator: str, function: Callable[..., torch.Tensor], precision: str, seed: int, size: float
) -> None:
    """float32 has over twice the digits of both types, so rounding its result is rounding the exact one."""
    x, y = np.random.default_rng(seed).normal(0, size, (2, 501)).astype(np.float32)
    expected = function(*in_half(precision, x, y)).float().numpy()
    found = emulate(half_graph(operator, precision, 2), {"x0": x, "x1": y})["y"]
    assert same_bits(found, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sigmoid(precision: str) -> None:
    x = np.random.default_rng(0).normal(0, 5, 20_000).astype(np.float32)
    (half,) = in_half(precision, x)
    exact = torch.sigmoid(half.double())
    found = emulate(half_graph("Sigmoid", precision), {"x0": x})["y"]
    # Half a unit in the last place, and ONNX Runtime's own sigmoid: 1e-7 of 1 off, whatever the result's size.
    np.testing.assert_allclose(found, exact.numpy(), rtol=UNIT[precision], atol=2e-7)
    assert np.mean(found == exact.to(half.dtype).float().numpy()) > 0.97


@pytest.mark.parametrize("precision", PRECISIONS)
@at_most(15)
@given(
    seed=st.integers(0, 2**31),
    channels=st.integers(1, 8),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
)
def test_convolution_sums_in_float32(precision: str, seed: int, channels: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    x, w = normal(rng, 2, channels, *size), normal(rng, 4, channels, 3, 3)
    half, kernel = in_half(precision, x, w)
    exact = torch.nn.functional.conv2d(half.double(), kernel.double(), padding=1).numpy()
    model = half_graph("Conv", precision, 1, {"w": w}, pads=[1, 1, 1, 1])
    found = emulate(model, {"x0": x})["y"]
    # Half a unit in the last place of the result, and the float32 sum's own error, which cancellation may leave alone.
    np.testing.assert_allclose(found, exact, rtol=1.01 * UNIT[precision], atol=1e-5)
    assert same_bits(found, found.astype(TYPES[precision][1]).astype(np.float32))


def test_convolution_is_torchs() -> None:
    """torch's own half-precision convolution sums in float32 as well; the order of its sum is another."""
    rng = np.random.default_rng(0)
    x, w = normal(rng, 1, 4, 16, 16), normal(rng, 4, 4, 3, 3)
    expected = torch.nn.functional.conv2d(*in_half("fp16", x, w), padding=1).float().numpy()
    found = emulate(half_graph("Conv", "fp16", 1, {"w": w}, pads=[1, 1, 1, 1]), {"x0": x})["y"]
    # Nearly all bits agree; where a sum is near a tie, its two roundings are one unit in the last place apart.
    assert np.mean(found == expected) > 0.98
    np.testing.assert_allclose(found, expected, rtol=2.0**-10, atol=1e-3)


def test_overflow_is_infinity_and_stays() -> None:
    """1e5 * 1e-1 would be finite again: ONNX Runtime, which keeps float32 between the two, says so; a GPU does not."""
    model = half_graph("Mul", "fp16", 1, {"w": np.array(1000.0)}, then=("Div",))
    x = np.array([1, 65, 66, -66], np.float32)
    assert emulate(model, {"x0": x})["y"].tolist() == [1, 65, np.inf, -np.inf]
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x0": x})[0].tolist() == [1, 65, 66, -66]


def test_bfloat16_has_the_range_of_float32() -> None:
    model = half_graph("Mul", "bf16", 1, {"w": np.array(1024.0)}, then=("Div",))
    assert emulate(model, {"x0": np.array([66, -3e38], np.float32)})["y"].tolist() == [66, -np.inf]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_half_precision_inputs_and_outputs(precision: str) -> None:
    """They are float32 under their own names, with values that the lower type has."""
    kind, dtype, _ = TYPES[precision]
    model = half_graph("Mul", precision, 1, {"w": np.array(3.0)}, interface=kind)
    emulating = emulating_model(model)
    assert [(v.name, v.dtype) for v in (*emulating.graph.inputs, *emulating.graph.outputs)] == [
        ("x0", ir.DataType.FLOAT),
        ("y", ir.DataType.FLOAT),
    ]
    x = np.float32([1 / 3, 1.0001])
    found = emulate(model, {"x0": x})["y"]
    expected = (x.astype(dtype).astype(np.float32) * 3).astype(dtype).astype(np.float32)
    assert same_bits(found, expected)
    assert same_bits(emulate(model, {"x0": x.astype(dtype)})["y"], expected)  # as it would be fed to the model itself


def test_nothing_of_half_precision_is_computed_with() -> None:
    model = half_graph("Conv", "fp16", 1, {"w": np.ones((1, 1, 1, 1))}, then=("Conv",))
    before = ir.to_proto(model).SerializeToString()
    emulating = emulating_model(model)
    assert ir.to_proto(model).SerializeToString() == before
    assert {v.dtype for v in emulating.graph.initializers.values()} == {ir.DataType.FLOAT}
    for node in emulating.graph:
        if node.op_type != "Cast":
            assert {v.dtype for v in (*node.inputs, *node.outputs) if v is not None} == {ir.DataType.FLOAT}
    onnx.checker.check_model(ir.to_proto(emulating), full_check=True)


def test_operators_that_only_move_numbers_are_not_rounded_again() -> None:
    model = half_graph("Relu", "fp16")
    assert [n.op_type for n in emulating_model(model).graph] == ["Cast", "Cast", "Cast", "Relu", "Cast"]


def test_constants_in_nodes_are_widened() -> None:
    model = half_graph("Add", "fp16", 2)
    constant = ir.node("Constant", [], {"value": ir.tensor(np.array(0.1, np.float16))}, name="constant")
    constant.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    add = next(n for n in model.graph if n.op_type == "Add")
    model.graph.insert_before(add, constant)
    add.replace_input_with(1, constant.outputs[0])
    found = emulate(model, {"x0": np.float32([0.0]), "x1": np.float32([0.0])})["y"]
    assert found.tolist() == [float(np.float16(0.1))]


def test_a_feed_that_does_not_fit_is_told() -> None:
    with pytest.raises(BackendError, match=r"^the graph could not be run in emulated half precision: ONNX "):
        emulate(half_graph("Relu", "fp16"), {"other": np.float32([1])})
