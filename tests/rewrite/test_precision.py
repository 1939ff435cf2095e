"""A half-precision graph: each tensor in the type that the rule says, and as near to float32 as the limits want."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from exporters import Decoder, export_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vaedeploy.bundle import Bundle
from vaedeploy.errors import InputError
from vaedeploy.graph.graph import Graph, load_graph, save_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.images.photos import load_photos
from vaedeploy.images.pixels import to_levels
from vaedeploy.numerics.emulation import emulate
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.rewrite.outcome import Refusal
from vaedeploy.rewrite.precision import Lowering, Underflow, lower_precision
from vaedeploy.source import load_reference
from vaedeploy.values.reference import Reference
from vaedeploy.verify.limits import LIMITS

FLOAT = ir.DataType.FLOAT
LOWER = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
DTYPE = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""How far one rounding moves a number, relative to it."""
PRECISIONS = tuple(LOWER)

Image = ["batch", 4, "height", "width"]
EYE = np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)


def node(operator: str, inputs: str, output: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        operator, inputs.split(), output.split(), name=f"{output.split()[0]}_node", domain=domain, **attributes
    )


def between_convolutions(
    *nodes: onnx.NodeProto,
    tensors: dict[str, Any] | None = None,
    opset: int = 20,
    output: list[Any] = Image,
    first: np.ndarray = EYE,
    last: np.ndarray | None = EYE,
) -> ir.Model:
    """x -> Conv -> a -> ``nodes`` -> z -> Conv -> y: with kernels of one, what the nodes make of x."""
    arrays = {"first": first, "last": EYE if last is None else last, **(tensors or {})}
    ends = [node("Identity", "z", "y")] if last is None else [node("Conv", "z last", "y")]
    graph = helper.make_graph(
        [node("Conv", "x first", "a"), *nodes, *ends],
        "between",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, Image)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in arrays.items() if last is not None or n != "last"],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("other", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10 if opset > 17 else 8)
    onnx.checker.check_model(model)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def checked(model: ir.Model, precision: str = "fp16", **options: Any) -> Lowering:
    """Lower in place, and hold the result to what is true of every lowered graph."""
    before = {v.name: (v.shape, v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)}
    result = lower_precision(model, precision, **options)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    interface = LOWER[precision] if options.get("inputs_outputs") == "lower" else FLOAT
    for value in (*model.graph.inputs, *model.graph.outputs):
        shape, dtype = before.pop(value.name)
        assert (value.shape, value.dtype) == (shape, interface if dtype == FLOAT else dtype)
    assert not before
    names = [v.name for n in model.graph for v in n.outputs] + list(model.graph.initializers)
    assert len(set(names)) == len(names)
    for cast in (n for n in model.graph if n.op_type == "Cast" and n.outputs[0].dtype in (FLOAT, *LOWER.values())):
        source, target = cast.inputs[0], cast.outputs[0]
        assert source.dtype != target.dtype, f"{cast.name} changes nothing"
        assert not source.is_initializer(), f"{cast.name} rounds a constant at run time"
        if source.producer() is not None and source.producer().op_type == "Cast":
            assert source.producer().inputs[0].dtype.is_integer(), f"{cast.name} stands behind another"
    return result


def wide_nodes(model: ir.Model) -> list[str]:
    """Names of the nodes that compute in float32."""
    nodes = [n for n in model.graph if n.op_type not in ("Cast", "Shape")]
    return [n.name for n in nodes if any(v and v.dtype == FLOAT for v in n.inputs)]


def run(model: ir.Model | Path, x: np.ndarray) -> dict[str, np.ndarray]:
    """As it is, with ONNX Runtime."""
    source: Any = model
    if isinstance(model, ir.Model):
        source = ir.to_proto(ir.external_data.load_to_model(model.clone())).SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    names = [v.name for v in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


def emulated(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    return emulate(model, {model.graph.inputs[0].name: x})


def rel_l2(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))


def normal(shape: tuple[int, ...], mean: float = 0, std: float = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, std, shape).astype(np.float32)


# What is lowered


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_traced_vae(tiny_graphs: Path, part: Any, precision: str) -> None:
    """The latent contract and what turns floats to bytes are float32; the rest is not."""
    model = load_graph(tiny_graphs / f"{part}.onnx", part).model
    weights = {n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items()}
    result = checked(model, precision)
    wide = Counter(n.op_type for n in model.graph if n.name in wide_nodes(model))
    if part == "decoder":
        latent, levels = {"Div": 1, "Add": 1}, {"Add": 1, "Mul": 1, "Round": 1, "Clip": 1, "Transpose": 1}
        finite = {"IsInf": 1, "IsNaN": 1, "ReduceSum": 1, "Equal": 1}  # reads the image, and counts
        scales = {"Resize": 2}
        assert wide == sum(map(Counter, (latent, levels, finite, scales)), Counter())
    else:  # exp(logarithm / 2); (mean - shift) * scale; std * |scale|
        assert wide == {"Exp": 1, "Sub": 1, "Mul": 3}
    lowered_nodes = [n for n in model.graph if n.op_type != "Cast" and n.outputs[0].dtype == LOWER[precision]]
    assert result.outcome.matches == len(lowered_nodes) > 15
    assert result.outcome.refusals == ()
    lowered = [n for n, v in model.graph.initializers.items() if v.dtype == LOWER[precision]]
    assert len([n for n in weights if n.endswith(("weight", "bias")) and n in lowered]) >= 6
    for name in lowered:
        once = weights[name].astype(DTYPE[precision])
        assert model.graph.initializers[name].const_value.numpy().tobytes() == once.tobytes()
    assert model.opset_imports[""] == (22 if precision == "bf16" else 20)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_half_precision_interface(tiny_graphs: Path, part: Any, precision: str) -> None:
    model, other = (load_graph(tiny_graphs / f"{part}.onnx", part).model for _ in range(2))
    checked(model, precision, inputs_outputs="lower")
    checked(other, precision)
    x = normal((1, 4, 6, 5) if part == "decoder" else (1, 3, 24, 20))
    x = x.astype(DTYPE[precision]).astype(np.float32)  # so that both are given the same
    found, expected = emulated(model, x), emulated(other, x)
    for name, value in expected.items():  # the same but for the last rounding
        rounded = value.astype(DTYPE[precision]).astype(np.float32) if value.dtype == np.float32 else value
        np.testing.assert_array_equal(found[name], rounded)


@settings(max_examples=20)
@given(
    precision=st.sampled_from(PRECISIONS),
    batch=st.integers(1, 3),
    height=st.integers(2, 7),
    width=st.integers(2, 7),
    seed=st.integers(0, 2**31),
    std=st.sampled_from([0.01, 1.0, 100.0]),
)
def test_error_is_that_of_a_few_roundings(
    precision: str, batch: int, height: int, width: int, seed: int, std: float
) -> None:
    """Conv, SiLU, Conv against float64: an error of a few roundings, relative to the sums of magnitudes."""
    rng = np.random.default_rng(seed)
    first, last = (rng.normal(size=(4, 4, 3, 3)).astype(np.float32) for _ in range(2))
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    model = between_convolutions(node("Sigmoid", "a", "s"), node("Mul", "a s", "z"), first=first, last=last)
    for conv in (n for n in model.graph if n.op_type == "Conv"):
        conv.attributes.update({k: ir.AttrInt64s(k, v) for k, v in pads.items()})
    x = normal((batch, 4, height, width), 0, std, seed)

    def layer(value: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return torch.nn.functional.conv2d(*map(torch.from_numpy, (value, kernel.astype(np.float64))), padding=1).numpy()

    a = layer(x.astype(np.float64), first)
    expected = layer(a * (1 + np.tanh(a / 2)) / 2, last)
    checked(model, precision)
    # x, kernel, a, sigmoid, product, kernel and y are rounded; an error in a passes SiLU at most 1.1-fold.
    magnitude = layer(np.abs(layer(np.abs(x).astype(np.float64), np.abs(first))), np.abs(last))
    allowed = 8 * UNIT[precision] * magnitude + 1e-6
    assert np.all(np.abs(emulated(model, x)["y"] - expected) <= allowed)


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


def test_constants_that_both_types_read() -> None:
    constant = normal((4, 1, 1))
    model = between_convolutions(
        node("Add", "a c", "low"),
        node("Sigmoid", "low", "s"),
        node("Softmax", "s", "p", axis=1),
        node("Mul", "p c", "z"),
        tensors={"c": constant},
    )
    checked(model, keep_fp32=["z_node"])
    np.testing.assert_array_equal(model.graph.initializers["c"].const_value.numpy(), constant)
    np.testing.assert_array_equal(model.graph.initializers["c_fp16"].const_value.numpy(), constant.astype(np.float16))


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


# Weights


def test_underflow_is_counted() -> None:
    """float16's smallest numbers: 2**-14 is normal, 2**-24 subnormal, and half of that rounds to zero."""
    kernel = np.zeros((4, 4, 1, 1), np.float32)
    kernel.flat[:7] = [2**-14, 2**-15, 2**-24, 2**-25, -(2**-26), 1.0, 2**-14 * 0.9999]
    lowering = checked(between_convolutions(node("Relu", "a", "z"), first=kernel))
    # 2**-14 * 0.9999 rounds up to 2**-14, which is normal.
    assert lowering.underflows == (Underflow("first", zeros=2, subnormals=2, size=16),)
    assert checked(between_convolutions(node("Relu", "a", "z"), first=kernel), "bf16").underflows == ()


def test_overflow_is_refused_before_anything_is_changed() -> None:
    kernel = EYE * np.float32(65520)
    model = between_convolutions(node("Relu", "a", "z"), last=kernel)
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(InputError, match=r"4 of 16 numbers of the weight last are beyond float16's range: up to 65520"):
        lower_precision(model, "fp16")
    assert ir.to_proto(model).SerializeToString() == before
    checked(model, keep_fp32=["y_node"])
    assert model.graph.initializers["last"].dtype == FLOAT
    checked(between_convolutions(node("Relu", "a", "z"), last=EYE * np.float32(65519)))  # rounds to 65504
    checked(between_convolutions(node("Relu", "a", "z"), last=kernel), "bf16")


def test_weights_are_rounded_one_at_a_time(tmp_path: Path) -> None:
    count, size = 8, 1 << 20
    names = [f"w{i}" for i in range(count)]
    steps = [node("Add", f"{'a' if i == 0 else f's{i - 1}'} w{i}", f"s{i}") for i in range(count)]
    tensors = {name: np.full((4, 1, size // 4), 0.1, np.float32) for name in names}
    model = between_convolutions(
        *steps, node("Relu", f"s{count - 1}", "z"), tensors=tensors, output=["batch", 4, None, None]
    )
    save_graph(Graph(model, "decoder"), tmp_path / "model.onnx")
    del model, tensors
    graph = load_graph(tmp_path / "model.onnx", "decoder")
    tracemalloc.start()
    lower_precision(graph.model, "fp16")
    save_graph(graph, tmp_path / "half.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One weight of 4 MB: its magnitude, the rounded one's, masks of it. All eight in half precision are 16 MB.
    assert peak < 15e6
    assert (tmp_path / "half.onnx.data").stat().st_size < 0.51 * (tmp_path / "model.onnx.data").stat().st_size


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


ERRORS = {
    "precision is 'int8'; it must be one of fp16, bf16": {"precision": "int8"},
    "inputs_outputs is 'fp16'; it must be one of fp32, lower": {"inputs_outputs": "fp16"},
    "normalization is 'none'; it must be one of native, fp32": {"normalization": "none"},
    "keep_fp32 names 'nowhere', and the graph has no node of that name": {"keep_fp32": ["a_node", "nowhere"]},
}


@pytest.mark.parametrize(("message", "options"), ERRORS.items(), ids=ERRORS)
def test_bad_options(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        lower_precision(between_convolutions(node("Relu", "a", "z")), **{"precision": "fp16", **options})


def test_a_graph_that_is_lowered_already() -> None:
    model = between_convolutions(node("Relu", "a", "z"))
    lower_precision(model, "fp16")
    with pytest.raises(InputError, match="is FLOAT16; only a graph that is float32 alone can be lowered"):
        lower_precision(model, "fp16")


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


# Other people's graphs


DIFFUSERS = {
    "AutoencoderKL": {
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8,) * 2,
        "decoder_block_out_channels": (8,) * 2,
        "num_encoder_blocks": (1,) * 2,
        "num_decoder_blocks": (1,) * 2,
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 4,
        "upsample_block_type": "interpolate",
        **{
            f"{part}_{name}": value
            for part in ("encoder", "decoder")
            for name, value in {
                "block_types": ("ResBlock",) * 2,
                "block_out_channels": (8, 16),
                "layers_per_block": (1, 1),
                "qkv_multiscales": ((), ()),
            }.items()
        },
    },
}


EXPORTS = [
    ("AutoencoderTiny", 17),
    ("AutoencoderKL", 17),
    # Not AutoencoderDC: the graph that TorchScript writes of it, with a permutation of -1, does not load.
    *(pytest.param(architecture, 18, marks=pytest.mark.slow) for architecture in DIFFUSERS),
]


@pytest.mark.parametrize(("architecture", "opset"), EXPORTS)
def test_decoders_of_diffusers(architecture: str, opset: int, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = Decoder(getattr(diffusers, architecture)(**DIFFUSERS[architecture])).eval()
    export_decoder(decoder, tmp_path / "plain.onnx", opset)
    x = normal((1, 4, 7, 4))
    (expected,) = run(tmp_path / "plain.onnx", x).values()
    for precision in PRECISIONS:
        model = ir.load(tmp_path / "plain.onnx")
        assert checked(model, precision).outcome.refusals == ()
        (found,) = emulated(model, x).values()
        assert rel_l2(found, expected) < LIMITS[precision][0].bound


# Whole VAEs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "vae"), [("fp16", "full_size_bundle"), *((precision, "demo_bundle") for precision in PRECISIONS)]
)
def test_whole_vaes_are_within_the_limits(request: pytest.FixtureRequest, vae: str, precision: Any) -> None:
    """On a photograph of 256x256 and its latent, against the float32 graph, in the form that keeps its digits."""
    bundle: Bundle = request.getfixturevalue(vae)
    limits = {limit.metric: limit for limit in LIMITS[precision]}
    photo = load_photos()[0][128:384, 128:384].transpose(2, 0, 1)[None]
    x = {"encoder": (photo / 127.5 - 1).astype(np.float32)}
    for part in ("encoder", "decoder"):
        expected = run(bundle.graph(part, "onnxruntime"), x[part])
        x.setdefault("decoder", expected.get("latent_mean"))
        model = load_graph(bundle.graph(part), part).model
        checked(model, precision)
        found = emulated(model, x[part])
        for name in (n for n in expected if expected[n].dtype == np.float32):
            assert limits["rel_l2"].allows(rel_l2(found[name], expected[name])), name
    levels = np.abs(found["image_u8"].astype(int) - to_levels(expected["image"]))
    if "within_one_level" in limits:
        assert limits["within_one_level"].allows(float(np.mean(levels <= 1)))
    else:
        assert limits["psnr"].allows(float(10 * np.log10(255**2 / np.mean(levels**2.0))))
    assert found["finite"].tolist() == [True]


def inflate(reference: Reference, exponent: int, first: int) -> None:
    """Make the decoder's stream ``2**exponent`` times as large, and leave its image as it is.

    The first convolution takes up to ``first`` of the exponent, so that its weights stay in float16's range, and the
    one before it the rest. Everything that reads the stream is linear or normalises it.
    """
    factor = 2.0**exponent
    vae = reference.decoder
    decoder = vae.decoder

    def scale(layer: Any, weight: float, bias: float) -> None:
        layer.weight.mul_(weight)
        layer.bias.mul_(bias)

    with torch.no_grad():
        scale(vae.post_quant_conv, factor / 2.0**first, factor / 2.0**first)
        scale(decoder.conv_in, 2.0**first, factor)
        blocks = [*decoder.mid_block.resnets, *(r for up in decoder.up_blocks for r in up.resnets)]
        for block in blocks:
            scale(block.conv2, factor, factor)
            block.norm1.eps *= factor**2
            if block.conv_shortcut is not None:
                scale(block.conv_shortcut, 1, factor)
        for attention in decoder.mid_block.attentions:
            scale(attention.to_out[0], factor, factor)
            attention.group_norm.eps *= factor**2
        for up in decoder.up_blocks:
            for upsampler in up.upsamplers or []:
                scale(upsampler.conv, 1, factor)
        decoder.conv_norm_out.eps *= factor**2


@pytest.mark.slow
def test_an_inflated_vae_is_black_under_emulation(small_vae: Path, tmp_path: Path) -> None:
    """Its stream is 2**17 times as large: the same image to the last bit in float32, none in float16."""
    reference = load_reference(small_vae)
    latent = normal((1, 4, 8, 8))
    save_graph(trace_graph(reference, "decoder"), tmp_path / "plain.onnx")
    expected = run(tmp_path / "plain.onnx", latent)["image"]
    inflate(reference, 17, first=12)
    save_graph(trace_graph(reference, "decoder"), tmp_path / "inflated.onnx")
    np.testing.assert_array_equal(run(tmp_path / "inflated.onnx", latent)["image"], expected)
    model = load_graph(tmp_path / "inflated.onnx", "decoder").model
    checked(model)
    found = emulated(model, latent)
    assert np.isnan(found["image"]).all()
    assert found["finite"].tolist() == [False]
