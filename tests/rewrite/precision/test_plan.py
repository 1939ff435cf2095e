"""Which tensors of a half-precision graph stay in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from lowered import (
    DTYPE,
    EYE,
    FLOAT,
    LOWER,
    PRECISIONS,
    UNIT,
    between_convolutions,
    checked,
    emulated,
    node,
    normal,
    rel_l2,
    run,
    wide_nodes,
)
from onnx import TensorProto, helper

from vaedeploy.errors import InputError
from vaedeploy.graph.graph import Graph, load_graph
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.rewrite.outcome import Refusal
from vaedeploy.rewrite.precision import lower_precision

# What stays in float32


def softmax() -> ir.Model:
    return between_convolutions(
        node("Mul", "a eight", "scaled"),
        node("Softmax", "scaled", "p", axis=-1),
        node("MatMul", "p p", "z"),
        tensors={"eight": np.float32(8)},
    )


def test_softmax_and_its_scale_are_float32() -> None:
    """Scores of 9e4 are beyond float16; the softmax of them is not."""
    model = softmax()
    checked(model)
    assert wide_nodes(model) == ["scaled_node", "p_node"]
    x = normal((1, 4, 6, 6), 0, 4000)
    found = emulated(model, x)["y"]
    expected = run(softmax(), x.astype(np.float16).astype(np.float32))["y"]
    assert rel_l2(found, expected) < 2 * UNIT["fp16"]  # the probabilities and the product are rounded


def normalised(rank_of_statistics: str = "two-stage") -> ir.Model:
    tensors: dict[str, Any] = {"groups": np.array([0, 2, -1]), "ones": np.ones(2, np.float32)}
    tensors |= {"zeros": np.zeros(2, np.float32), "gamma": normal((4, 1, 1), 1), "beta": normal((4, 1, 1))}
    model = between_convolutions(
        node("Reshape", "a groups", "grouped"),
        node("InstanceNormalization", "grouped ones zeros", "normal", epsilon=1e-6),
        node("Shape", "a", "size", start=0),
        node("Reshape", "normal size", "back"),
        node("Mul", "back gamma", "scaled"),
        node("Add", "scaled beta", "z"),
        tensors=tensors,
    )
    return rewrite_graph(Graph(model, "decoder")).graph.model if rank_of_statistics == "two-stage" else model


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("mean", "std"), [(0, 1), (0, 2000), (100, 1), (0, 1e-3)])
def test_statistics_of_primitives_are_float32(precision: str, mean: float, std: float) -> None:
    """Squares beyond 65504, a mean that is many deviations, and one epsilon above the variance: nothing is lost."""
    model = normalised()
    checked(model, precision)
    kept = [
        n for n in model.graph if n.name not in wide_nodes(model) and n.op_type not in ("Cast", "Shape", "Constant")
    ]
    assert [n.op_type for n in kept] == ["Conv", "Conv"]
    x = normal((2, 4, 32, 40), mean, std).astype(DTYPE[precision]).astype(np.float32)
    assert rel_l2(emulated(model, x)["y"], run(normalised(), x)["y"]) < 2 * UNIT[precision]


def test_native_normalisation() -> None:
    """The node stays in the lower type, or goes to float32 together with its scale and bias."""
    native, wide = normalised("native"), normalised("native")
    checked(native)
    checked(wide, normalization="fp32")
    assert wide_nodes(native) == []
    assert wide_nodes(wide) == ["normal_node", "back_node", "scaled_node", "z_node"]
    assert {v.dtype for v in native.graph.initializers.values()} == {LOWER["fp16"], ir.DataType.INT64}
    x = normal((2, 4, 32, 40)).astype(np.float16).astype(np.float32)
    expected = run(normalised("native"), x)["y"]
    # One rounding after scale and bias rather than three, at the node, the product and the sum.
    assert rel_l2(emulated(wide, x)["y"], expected) < 0.8 * rel_l2(emulated(native, x)["y"], expected)


@pytest.mark.parametrize("squares", [[node("Mul", "a a", "q")], [node("Pow", "a two", "q")]])
def test_rms_normalisation(squares: list[onnx.NodeProto]) -> None:
    model = between_convolutions(
        *squares,
        node("ReduceMean", "q axis", "mean", keepdims=1),
        node("Add", "mean epsilon", "sum"),
        node("Sqrt", "sum", "root"),
        node("Reciprocal", "root", "inverse"),
        node("Mul", "a inverse", "n"),
        node("Mul", "n gamma", "scaled"),
        node("Sigmoid", "scaled", "sigmoid"),
        node("Mul", "scaled sigmoid", "z"),
        tensors={
            "axis": np.array([1]),
            "epsilon": np.float32(1e-5),
            "gamma": normal((4, 1, 1), 1),
            "two": np.float32(2),
        },
    )
    checked(model)
    names = ["q", "mean", "sum", "root", "inverse", "n", "scaled"]
    assert wide_nodes(model) == [f"{n}_node" for n in names]
    assert np.isfinite(emulated(model, normal((1, 4, 5, 5), 0, 3000))["y"]).all()


def test_division_by_a_tensor_with_an_epsilon_that_float16_has_not() -> None:
    """0 / (0 + 1e-15) is 0, and NaN where the epsilon is lost."""
    model = between_convolutions(
        node("Add", "a epsilon", "sum"), node("Div", "a sum", "z"), tensors={"epsilon": np.float32(1e-15)}
    )
    checked(model)
    assert wide_nodes(model) == ["sum_node", "z_node"]
    assert emulated(model, np.zeros((1, 4, 2, 2), np.float32))["y"].tolist() == np.zeros((1, 4, 2, 2)).tolist()


def test_scalars_beyond_the_range() -> None:
    model = between_convolutions(
        node("Clip", "a low high", "z"), tensors={"low": np.float32(-1e30), "high": np.float32(9)}
    )
    checked(model)
    assert wide_nodes(model) == ["z_node"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_resize_keeps_its_scales(precision: str) -> None:
    model = between_convolutions(
        node("Resize", "a empty scales", "z", mode="nearest", coordinate_transformation_mode="asymmetric"),
        tensors={"empty": np.zeros(0, np.float32), "scales": np.float32([1, 1, 2, 2])},
        output=["batch", 4, None, None],
    )
    checked(model, precision)
    assert model.graph.initializers["scales"].dtype == FLOAT
    (resize,) = [n for n in model.graph if n.op_type == "Resize"]
    assert resize.inputs[0].dtype == resize.outputs[0].dtype == LOWER[precision]
    x = np.float32([[[[1]], [[2]], [[3]], [[4]]]])
    np.testing.assert_array_equal(emulated(model, x)["y"], x.repeat(2, 2).repeat(2, 3))


def test_shape_arithmetic_is_float32() -> None:
    """Sizes above 2048 are not all in float16: what TorchScript computes in floats decides a shape."""
    model = between_convolutions(
        node("Shape", "a", "size", start=2),
        node("Cast", "size", "floats", to=TensorProto.FLOAT),
        node("Mul", "floats two", "twice"),
        node("Floor", "twice", "floor"),
        node("Cast", "floor", "spatial", to=TensorProto.INT64),
        node("Shape", "a", "items", end=2),
        node("Concat", "items spatial", "sizes", axis=0),
        helper.make_node("Resize", ["a", "", "", "sizes"], ["z"], name="z_node", mode="nearest"),
        tensors={"two": np.float32(2)},
        output=["batch", 4, None, None],
    )
    checked(model)
    assert {"twice_node", "floor_node", "spatial_node"} <= {
        n.name for n in model.graph if n.inputs[0] is not None and n.inputs[0].dtype == FLOAT
    }
    assert run(model, np.zeros((1, 4, 1, 1027), np.float32))["y"].shape == (1, 4, 2, 2054)


def test_moves_have_the_type_of_what_they_move() -> None:
    """x -> Transpose -> Conv moves half the bytes, and so does Conv -> Transpose -> y."""
    perm = {"perm": [0, 1, 3, 2]}
    model = between_convolutions(node("Transpose", "a", "t", **perm), node("Transpose", "t", "z", **perm), last=None)
    checked(model)
    assert wide_nodes(model) == []
    softly = between_convolutions(
        node("Softmax", "a", "p"), node("Transpose", "p", "t", **perm), node("Softmax", "t", "z"), last=None
    )
    checked(softly)  # between two that are float32, nothing is gained by a detour
    assert wide_nodes(softly) == ["p_node", "t_node", "z_node", "y_node"]


def test_kept_nodes() -> None:
    """From a named convolution's output on, 1e5 is a number like another."""
    kept = between_convolutions(
        node("Mul", "a eighth", "z"), first=EYE * np.float32(1000), tensors={"eighth": np.float32(0.125)}
    )
    lowered = kept.clone()
    checked(kept, keep_fp32=["a_node", "z_node"])
    checked(lowered)
    assert wide_nodes(kept) == ["a_node", "z_node"]
    x = np.full((1, 4, 1, 1), 100, np.float32)
    assert np.unique(emulated(kept, x)["y"]).tolist() == [12496.0]  # 12500 in steps of 8: the last convolution rounds
    assert not np.isfinite(emulated(lowered, x)["y"]).any()


def test_finite_sees_the_half_precision_image(tiny_graphs: Path) -> None:
    """An image of 1e5 is a number in float32 and infinity in float16: the guard says so, item by item."""
    model = load_graph(tiny_graphs / "decoder.onnx", "decoder").model
    latent = np.concatenate([normal((1, 4, 4, 4)), normal((1, 4, 4, 4), seed=1)])
    sizes = np.abs(run(model, latent)["image"]).max(axis=(1, 2, 3))
    last = [n for n in model.graph if n.op_type == "Conv"][-1]
    for value in last.inputs[1:]:  # so that one item's image is below the limit, and the other's above
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(65504 / np.sqrt(sizes.prod())))
    sizes = np.abs(run(model, latent)["image"]).max(axis=(1, 2, 3))
    assert sizes.min() < 0.99 * 65504 < 1.01 * 65504 < sizes.max()
    checked(model)
    out = emulated(model, latent)
    assert out["finite"].tolist() == (sizes < 65504).tolist() == np.isfinite(out["image"]).all(axis=(1, 2, 3)).tolist()


# Refusals


def test_operators_that_are_not_of_the_standard() -> None:
    model = between_convolutions(node("Swish", "a", "s", domain="other"), node("Relu", "s", "z"))
    model.graph[1].outputs[0].type = ir.TensorType(FLOAT)
    lowering = lower_precision(model, "fp16")
    assert lowering.outcome.refusals == (Refusal("s_node", "other.Swish is not a standard operator"),)
    assert [n.op_type for n in model.graph][2:5] == ["Cast", "Swish", "Cast"]


def test_operators_that_do_not_take_the_type() -> None:
    model = between_convolutions(
        node("Det", "a", "d"), node("Unsqueeze", "d ends", "z"), tensors={"ends": np.array([2, 3])}
    )
    assert checked(model.clone(), "bf16").outcome.refusals == ()
    model = between_convolutions(
        node("Upsample", "a scales", "z"), tensors={"scales": np.float32([1, 1, 1, 1])}, opset=9
    )
    assert checked(model).outcome.refusals == ()


def test_control_flow() -> None:
    def branch(operator: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(operator, TensorProto.FLOAT, None)
        return helper.make_graph([node(operator, "a", operator)], operator, [], [out])

    model = between_convolutions(
        node("If", "yes", "z", then_branch=branch("Relu"), else_branch=branch("Sigmoid")),
        tensors={"yes": np.array(True)},
    )
    with pytest.raises(InputError, match=r"node z_node \(If\) holds a graph"):
        lower_precision(model, "fp16")


@pytest.mark.parametrize(
    "operator",
    [
        node("ReduceMean", "a", "z", axes=[1]),  # axes are an input from 18 on
        node("Split", "a", "z rest", axis=1),  # the number of outputs is an attribute from 18 on
    ],
    ids=lambda operator: operator.op_type,
)
def test_operators_that_opset_22_changed(operator: onnx.NodeProto) -> None:
    """bf16 needs that opset; float16 does not."""
    channels = 1 if operator.op_type == "ReduceMean" else 2
    model = between_convolutions(operator, last=np.ones((4, channels, 1, 1), np.float32), opset=17)
    with pytest.raises(InputError, match=f"bf16 needs opset 22, and {operator.op_type} .node .*. means something else"):
        lower_precision(model, "bf16")
    assert lower_precision(model, "fp16").outcome.matches


def test_bf16_in_opset_22_is_what_it_was_in_17() -> None:
    model = between_convolutions(
        node("Resize", "a empty scales", "r", mode="nearest"),
        node("Softmax", "r", "z"),
        tensors={"empty": np.zeros(0, np.float32), "scales": np.float32([1, 1, 2, 2])},
        output=["batch", 4, None, None],
        opset=17,
    )
    expected = run(model, x := normal((1, 4, 3, 5)))["y"]
    checked(model, "bf16")
    assert (model.opset_imports[""], model.ir_version) == (22, 10)
    assert rel_l2(emulated(model, x)["y"], expected) < 3 * UNIT["bf16"]  # x, the softmax and y are rounded
