"""The folded layer is Resize and then Conv: in float64 to the last digits, and only where it really is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from examples import at_most
from exporters import Decoder, export_decoder
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from vaedeploy.bundle import Bundle
from vaedeploy.rewrite.doubling import NEAREST
from vaedeploy.rewrite.padding import fold_padding
from vaedeploy.rewrite.upsample import UpsampleForm, fold_upsampling

FORMS: list[UpsampleForm] = ["convolutions", "transposed"]
EXACT = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
PADDED = {"pads": [1, 1, 1, 1]}
ROWS = ["Constant", "Concat", "Concat", "Reshape", "Reshape"]
COLUMNS = ["Concat", "Shape", "Constant", "Mul", "Reshape"]
OPERATORS = {
    ("convolutions", False): ["Conv"] * 4 + ROWS + COLUMNS,
    ("convolutions", True): ["Pad", "Conv"] * 4 + ROWS + COLUMNS,
    ("transposed", False): ["ConvTranspose"],
    ("transposed", True): ["Pad", "ConvTranspose"],
}
BY_ONE = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


def upsampler(
    channels: tuple[int, int] = (2, 4),
    groups: int = 1,
    *,
    kernel: tuple[int, int] = (3, 3),
    bias: bool = True,
    resize: dict[str, Any] | None = None,
    conv: dict[str, Any] | None = None,
    scales: tuple[float, ...] | None = (1, 1, 2, 2),
    sizes: list[onnx.NodeProto] | None = None,
    between: list[onnx.NodeProto] | None = None,
    extra: list[onnx.NodeProto] | None = None,
    outputs: tuple[str, ...] = ("y",),
    tensors: dict[str, np.ndarray] | None = None,
    weight_input: bool = False,
    dtype: type = np.float64,
    opset: int = 20,
) -> onnx.ModelProto:
    """x -> Resize -> up -> (``between``) -> read -> Conv -> y, in ``dtype``; ``sizes`` compute the value "sizes"."""
    rng = np.random.default_rng(sum(channels))
    weights = {
        "scales": np.array(scales or (), np.float32),
        "w": rng.normal(size=(channels[1], channels[0] // groups, *kernel)).astype(dtype),
        "b": rng.normal(size=channels[1]).astype(dtype),
        **(tensors or {}),
    }
    scaled = ["x", "", "scales"] if scales else ["x", "", "", "sizes"]
    nodes = [
        *(sizes or []),
        helper.make_node("Resize", scaled, ["up"], name="resize", **(EXACT if resize is None else resize)),
        *(between or []),
        helper.make_node(
            "Conv",
            ["read" if between else "up", "w", *(["b"] if bias else [])],
            ["y"],
            name="conv",
            group=groups,
            **(PADDED if conv is None else conv),
        ),
        *(extra or []),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info("x", kind, ["batch", channels[0], "height", "width"])]
    if weight_input:
        inputs.append(helper.make_tensor_value_info("w", kind, weights.pop("w").shape))
    graph = helper.make_graph(
        nodes,
        "upsampler",
        inputs,
        [helper.make_tensor_value_info(name, kind, [None] * 4) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)


def bordered(border: str, *channels: Any, **options: Any) -> onnx.ModelProto:
    """``upsampler`` with a Pad by one pixel on each side, of that mode, and a convolution that does not pad."""
    given = {"between": [node("Pad", "up pads", "read", mode=border)], "conv": {}, "tensors": BY_ONE}
    return upsampler(*channels, **{**given, **options})


def folded(model: onnx.ModelProto, form: UpsampleForm, matches: int = 1) -> onnx.ModelProto:
    new = ir.from_proto(model)
    outcome = fold_upsampling(new, form)
    assert (outcome.rule, outcome.matches, outcome.refusals) == ("fold_upsampling", matches, ())
    proto = ir.to_proto(new)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def refused(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Node and reason of each refusal, by a rule that left the graph as it was."""
    new = ir.from_proto(model)
    before = ir.to_proto(new).SerializeToString()
    outcome = fold_upsampling(new, "convolutions")
    assert outcome.matches == 0
    assert ir.to_proto(new).SerializeToString() == before
    return [(refusal.node, refusal.reason) for refusal in outcome.refusals]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


class ConvTranspose(OpRun):
    """PyTorch's: onnx's own reference fails where there are groups."""

    def _run(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, **attributes: Any) -> tuple[np.ndarray]:
        given = [None if array is None else torch.tensor(array) for array in (x, w, b)]
        (top, left, bottom, right), strides = attributes["pads"], attributes["strides"]
        assert (top, left) == (bottom, right)
        y = torch.nn.functional.conv_transpose2d(*given, strides, (top, left), groups=attributes["group"])
        return (y.numpy(),)


def float64(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return ReferenceEvaluator(model, new_ops=[ConvTranspose]).run(None, {"x": x})[0]


def layer(model: onnx.ModelProto, x: np.ndarray, border: str = "constant") -> np.ndarray:
    """y by its definition, in float64: repeat every pixel, then the sums of the convolution.

    border: numpy's name of what lies beyond the border; constant is zeros.
    """
    tensors = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    weight, bias = tensors["w"], tensors["b"]
    groups = x.shape[1] // weight.shape[1]
    up = np.pad(x.astype(np.float64).repeat(2, 2).repeat(2, 3), ((0, 0), (0, 0), (1, 1), (1, 1)), border)
    windows = np.lib.stride_tricks.sliding_window_view(up, (3, 3), (2, 3))
    batch, _, height, width = windows.shape[:4]
    windows = windows.reshape(batch, groups, -1, height, width, 3, 3)
    kernels = weight.reshape(groups, -1, *weight.shape[1:])
    y = np.einsum("bgihwkl,goikl->bgohw", windows, kernels).reshape(batch, -1, height, width)
    return y + bias[:, None, None]


@at_most(30)
@given(
    form=st.sampled_from(FORMS),
    border=st.sampled_from(["constant", "edge", "reflect"]),
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    per_group=st.tuples(st.integers(2, 3), st.integers(1, 3)),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_equation_holds_in_float64(
    form: UpsampleForm,
    border: str,
    batch: int,
    groups: int,
    per_group: tuple[int, int],
    height: int,
    width: int,
    seed: int,
) -> None:
    channels = groups * per_group[0], groups * per_group[1]
    model = upsampler(channels, groups) if border == "constant" else bordered(border, channels, groups)
    new = folded(model, form)
    assert operators(new) == OPERATORS[form, border != "constant"]
    x = np.random.default_rng(seed).normal(size=(batch, groups * per_group[0], height, width))
    # A few dozen roundings of 1e-16 in another order.
    np.testing.assert_allclose(float64(new, x), layer(model, x, border), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("border", ["edge", "reflect"])
@pytest.mark.parametrize("form", FORMS)
def test_a_repeated_border_in_onnxruntime(form: UpsampleForm, border: str) -> None:
    model = bordered(border, dtype=np.float32)
    new = folded(model, form)
    for size in ((1, 1), (1, 4), (5, 3)):
        x = np.random.default_rng(0).normal(size=(2, 2, *size)).astype(np.float32)
        # float32 sums of 18 products of numbers around 1.
        np.testing.assert_allclose(run(new, x), run(model, x), rtol=0, atol=1e-5)
        np.testing.assert_allclose(run(new, x), layer(model, x, border), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_none(form: UpsampleForm) -> None:
    assert run(folded(upsampler(dtype=np.float32), form), np.zeros((0, 2, 3, 5), np.float32)).shape == (0, 4, 6, 10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_taps_are_summed_in_float64_and_rounded_once(form: UpsampleForm, dtype: type) -> None:
    model = upsampler(dtype=dtype)
    new = folded(model, form)
    tensors = {t.name: numpy_helper.to_array(t) for t in new.graph.initializer}
    w = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w").astype(np.float64)
    if form == "convolutions":
        name, expected = "w.phase_01", np.stack([w[:, :, 0], w[:, :, 1] + w[:, :, 2]], 2)
        expected = np.stack([expected[..., 0] + expected[..., 1], expected[..., 2]], 3)
        assert set(tensors) == {"b", "w.phase_00", "w.phase_01", "w.phase_10", "w.phase_11"}
    else:
        name, taps = "w.transposed", [[2], [1, 2], [0, 1], [0]]
        rows = np.stack([w[:, :, tap].sum(2) for tap in taps], 2)
        expected = np.stack([rows[..., tap].sum(3) for tap in taps], 3).swapaxes(0, 1)
        assert set(tensors) == {"b", "w.transposed"}
    assert tensors[name].dtype == dtype
    np.testing.assert_array_equal(tensors[name], expected.astype(dtype))


def run(model: onnx.ModelProto | Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("coordinates", ["asymmetric", "half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"])
@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
def test_resizes_are_told_apart_as_onnxruntime_runs_them(coordinates: str, rounding: str) -> None:
    attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    model = upsampler(resize=attributes, dtype=np.float32)
    x = np.random.default_rng(0).normal(size=(1, 2, 37, 1)).astype(np.float32)
    # float32 sums of 18 products, of which a wrong pixel changes some by about 1.
    same = np.abs(run(model, x) - layer(model, x)).max() < 1e-4
    assert same == ((coordinates, rounding) in NEAREST)
    if same:
        folded(model, "convolutions")
    else:
        (reason,) = refused(model)
        assert reason == (
            "resize",
            f"coordinates {coordinates} with rounding {rounding} do not read the pixel at half the position",
        )


def test_defaults_of_resize_are_nearest() -> None:
    assert "Resize" not in operators(folded(upsampler(resize={}), "transposed"))


def computed_sizes(*height_and_width: onnx.NodeProto) -> list[onnx.NodeProto]:
    """As exporters compute them: from the Shape of x, by nodes that give "high" and "wide", each (1,)."""
    kept = [node("Shape", "x", "kept", start=0, end=2), node("Shape", "x", "h0", start=2, end=3)]
    kept.append(node("Shape", "x", "w0", start=3))
    return [*kept, *height_and_width, node("Concat", "kept high wide", "sizes", axis=0)]


NUMBERS = {"two": np.array([2]), "2.0": np.array([2], np.float32), "eight": np.array([8]), "sixteen": np.array([16])}
DOUBLE = {
    "integers": [node("Mul", "h0 two", "high"), node("Add", "w0 w0", "wide")],
    "floats": [
        node("Cast", "h0", "hf", to=TensorProto.FLOAT),
        node("Mul", "hf 2.0", "h2"),
        node("Floor", "h2", "hr"),
        node("Cast", "hr", "high", to=TensorProto.INT64),
        node("Mul", "w0 two", "wide"),
    ],
}
NOT_DOUBLE = {
    "another factor": [node("Mul", "h0 eight", "high"), node("Mul", "w0 two", "wide")],
    "exchanged": [node("Mul", "w0 two", "high"), node("Mul", "h0 two", "wide")],
    "double only where divisible": [
        node("Div", "h0 eight", "hd"),
        node("Mul", "hd sixteen", "high"),
        node("Mul", "w0 two", "wide"),
    ],
}


@pytest.mark.parametrize("sizes", DOUBLE.values(), ids=DOUBLE)
@pytest.mark.parametrize("annotated", [True, False])
def test_computed_sizes(sizes: list[onnx.NodeProto], annotated: bool) -> None:
    model = ir.from_proto(upsampler(scales=None, sizes=computed_sizes(*sizes), tensors=NUMBERS))
    if not annotated:
        model.graph.inputs[0].shape = None
    assert fold_upsampling(model, "transposed").matches == 1
    assert [node.op_type for node in model.graph] == ["ConvTranspose"]


@pytest.mark.parametrize("sizes", NOT_DOUBLE.values(), ids=NOT_DOUBLE)
def test_computed_sizes_that_are_not_double(sizes: list[onnx.NodeProto]) -> None:
    model = upsampler(scales=None, sizes=computed_sizes(*sizes), tensors=NUMBERS)
    assert refused(model) == [("resize", "its sizes cannot be shown to be twice the input's")]


def test_axes() -> None:
    """From opset 18 a Resize may name the axes that its scales are of."""
    model = upsampler(scales=(2, 2), resize={**EXACT, "axes": [-1, -2]})
    assert operators(folded(model, "transposed")) == ["ConvTranspose"]


PADS = {mode: [node("Pad", "up pads", "read", mode=mode)] for mode in ("constant", "edge", "reflect", "wrap")}

REFUSALS: list[tuple[str, str, dict[str, Any]]] = [
    ("resize", "its mode is linear, not nearest", {"resize": {**EXACT, "mode": "linear"}}),
    ("resize", "its scales are [1.0, 1.0, 2.0, 3.0], not [1, 1, 2, 2]", {"scales": (1, 1, 2, 3)}),
    ("resize", "its scales are [2.0, 1.0], not [2, 2]", {"scales": (2, 1), "resize": {**EXACT, "axes": [2, 3]}}),
    (
        "resize",
        "it does not scale both height and width",
        {"scales": (1, 2), "resize": {**EXACT, "axes": [1, 2]}},
    ),
    ("resize", "no convolution reads it", {"between": [node("Neg", "up", "read")]}),
    ("conv", "its kernel is 5x3, not 3x3", {"kernel": (5, 3), "conv": {"pads": [2, 1, 2, 1]}}),
    ("conv", "its strides are [2, 2], not 1", {"conv": {**PADDED, "strides": [2, 2]}}),
    ("conv", "its dilations are [1, 2], not 1", {"conv": {**PADDED, "dilations": [1, 2]}}),
    ("conv", "its padding is [0, 1, 1, 1], not 1 on each side", {"conv": {"pads": [0, 1, 1, 1]}}),
    ("conv", "its padding is VALID, not 1 on each side", {"conv": {"auto_pad": "VALID"}}),
    ("conv", "its weights are not constant", {"weight_input": True}),
    (
        "conv",
        "it is depthwise: reading and writing images takes its time, not multiplications",
        {"channels": (4, 4), "groups": 4},
    ),
    ("read", "its mode is constant, not edge or reflect", {"between": PADS["constant"], "tensors": BY_ONE}),
    ("read", "its mode is wrap, not edge or reflect", {"between": PADS["wrap"], "tensors": BY_ONE}),
    (
        "read",
        "it pads by [1, 0, 1, 1], not by 1 on each side",
        {"between": PADS["edge"], "tensors": {"pads": np.array([0, 0, 1, 0, 0, 0, 1, 1])}},
    ),
    (
        "read",
        "it pads by [2, 2, 2, 2], not by 1 on each side",
        {"between": PADS["reflect"], "tensors": {"pads": np.array([0, 0, 2, 2, 0, 0, 2, 2])}},
    ),
    (
        "read",
        "it pads the batch or the channels",
        {"between": PADS["edge"], "channels": (4, 4), "tensors": {"pads": np.array([0, 1, 1, 1, 0, 1, 1, 1])}},
    ),
    (
        "conv",
        "its padding is [1, 1, 1, 1], not 0 after a Pad",
        {"between": PADS["reflect"], "tensors": BY_ONE},
    ),
    (
        "conv",
        "its padding is SAME_UPPER, not 0 after a Pad",
        {"between": PADS["reflect"], "tensors": BY_ONE, "conv": {"auto_pad": "SAME_UPPER"}},
    ),
    (
        "conv",
        "sums of its weights overflow their type",
        {"dtype": np.float16, "tensors": {"w": np.full((4, 2, 3, 3), 4e4, np.float16)}},
    ),
]


@pytest.mark.parametrize(("name", "reason", "options"), REFUSALS, ids=[reason for _, reason, _ in REFUSALS])
def test_refusals(name: str, reason: str, options: dict[str, Any]) -> None:
    assert refused(upsampler(**options)) == [(name, reason)]


def test_two_pads_are_left_alone() -> None:
    twice = [node("Pad", "up pads", "framed", mode="edge"), node("Pad", "framed pads", "read", mode="edge")]
    assert refused(bordered("edge", between=twice)) == [("resize", "no convolution reads it")]


def test_padding_by_size_is_padding_by_one() -> None:
    assert operators(folded(upsampler(conv={"auto_pad": "SAME_UPPER"}), "transposed")) == ["ConvTranspose"]


@pytest.mark.parametrize("form", FORMS)
def test_casts_between_go_to_the_small_image(form: UpsampleForm) -> None:
    between = [
        node("Cast", "up", "rounded", to=TensorProto.FLOAT),
        node("Cast", "rounded", "read", to=TensorProto.DOUBLE),
    ]
    model = upsampler(between=between)
    new = folded(model, form)
    assert operators(new)[:2] == ["Cast", "Cast"]
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 4))
    # A few dozen roundings of 1e-16 in another order; without the casts, 1e-8.
    np.testing.assert_allclose(float64(new, x), layer(model, x.astype(np.float32)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_pad_among_casts(form: UpsampleForm) -> None:
    between = [
        node("Cast", "up", "rounded", to=TensorProto.FLOAT),
        node("Pad", "rounded pads", "framed", mode="reflect"),
        node("Cast", "framed", "read", to=TensorProto.DOUBLE),
    ]
    model = bordered("reflect", between=between)
    new = folded(model, form)
    assert operators(new)[:3] == ["Cast", "Cast", "Pad"]
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 4))
    # As above.
    np.testing.assert_allclose(float64(new, x), layer(model, x.astype(np.float32), "edge"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_other_readers_keep_the_resize(form: UpsampleForm) -> None:
    """A second convolution with the same weights is folded into the same new ones; an output stays an output."""
    extra = [helper.make_node("Conv", ["up", "w"], ["z"], name="second", **PADDED)]
    model = upsampler(extra=extra, outputs=("y", "up", "z"))
    new = folded(model, form, matches=2)
    assert "Resize" in operators(new)
    assert [value.name for value in new.graph.output] == ["y", "up", "z"]
    assert len(new.graph.initializer) == (2 + 4 if form == "convolutions" else 2 + 1)
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 4))
    outputs = ReferenceEvaluator(new, new_ops=[ConvTranspose]).run(None, {"x": x})
    bias = next(numpy_helper.to_array(t) for t in new.graph.initializer if t.name == "b")
    # As above.
    np.testing.assert_allclose(outputs[0], layer(model, x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(outputs[2] + bias[:, None, None], layer(model, x), rtol=1e-12, atol=1e-12)


def test_a_second_call_folds_what_the_first_could_not() -> None:
    """With the same weights, whose folded names are taken."""
    padding = helper.make_node("Pad", ["up", "pads"], ["framed"], name="pad")
    second = helper.make_node("Conv", ["framed", "w"], ["z"], name="second")
    model = ir.from_proto(upsampler(extra=[padding, second], outputs=("y", "z"), tensors=BY_ONE))
    assert fold_upsampling(model, "transposed").matches == 1
    assert fold_padding(model).matches == 1
    assert fold_upsampling(model, "transposed").matches == 1
    assert [node.op_type for node in model.graph] == ["ConvTranspose", "ConvTranspose"]
    assert set(model.graph.initializers) == {"b", "w.transposed", "w.transposed_"}


def test_new_values_have_shapes_and_types() -> None:
    model = ir.from_proto(upsampler())
    fold_upsampling(model, "convolutions")
    outputs = {node.op_type: node.outputs[0] for node in model.graph}  # of several, the last
    high, wide = model.graph.outputs[0].shape[2:]
    assert outputs["Conv"].shape == ["batch", 4, "height", "width"]
    assert outputs["Concat"].shape == ["batch", 4, "height", wide, 2]
    assert list(outputs["Reshape"].shape[1:]) == [4, high, wide]
    sizes = ("Constant", "Shape", "Mul")
    for node in model.graph:
        assert node.name
        assert node.outputs[0].dtype == (ir.DataType.INT64 if node.op_type in sizes else ir.DataType.DOUBLE)


def test_new_values_behind_a_pad_have_shapes() -> None:
    model = ir.from_proto(bordered("reflect"))
    fold_upsampling(model, "convolutions")
    shapes = [node.outputs[0].shape for node in model.graph if node.op_type in ("Pad", "Conv")]
    assert [str(shape) for shape in shapes] == ["[batch,2,height + 1,width + 1]", "[batch,4,height,width]"] * 4


def test_an_unknown_form_is_told() -> None:
    with pytest.raises(ValueError, match="form is 'winograd'; it must be one of convolutions, transposed"):
        fold_upsampling(ir.from_proto(upsampler()), "winograd")  # type: ignore[arg-type]


DIFFUSERS = {
    "AutoencoderKL": {
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8,) * 3,
        "decoder_block_out_channels": (8,) * 3,
        "num_encoder_blocks": (1,) * 3,
        "num_decoder_blocks": (1,) * 3,
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 4,
        "upsample_block_type": "interpolate",
        **{
            f"{part}_{name}": value
            for part in ("encoder", "decoder")
            for name, value in {
                "block_types": ("ResBlock",) * 3,
                "block_out_channels": (8, 8, 16),
                "layers_per_block": (1, 1, 1),
                "qkv_multiscales": ((), (), ()),
            }.items()
        },
    },
}


def compare_forms(plain: Path, folder: Path, latent: np.ndarray, matches: int, limit: float) -> None:
    """Fold ``plain`` to each form, in ``folder``, and hold its first output to ``limit`` (relative L2) of the plain
    one's.
    """
    expected = run(plain, latent)
    for form in FORMS:
        model = ir.load(plain)
        outcome = fold_upsampling(model, form)
        assert (outcome.matches, outcome.refusals) == (matches, ())
        ir.save(model, folder / "folded.onnx", external_data="folded.onnx.data")
        onnx.checker.check_model(folder / "folded.onnx", full_check=True)
        difference = run(folder / "folded.onnx", latent) - expected
        assert np.linalg.norm(difference) < limit * np.linalg.norm(expected)


EXPORTS = [
    ("AutoencoderTiny", 17),
    ("AutoencoderKL", 17),
    # Not AutoencoderDC: the graph that TorchScript writes of it, with a permutation of -1, does not load.
    *(pytest.param(architecture, 18, marks=pytest.mark.slow) for architecture in DIFFUSERS),
]


@pytest.mark.parametrize(("architecture", "opset"), EXPORTS)
def test_every_upsampler_of_diffusers(architecture: str, opset: int, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = Decoder(getattr(diffusers, architecture)(**DIFFUSERS[architecture])).eval()
    export_decoder(decoder, tmp_path / "plain.onnx", opset)
    latent = np.random.default_rng(0).normal(size=(1, 4, 7, 4)).astype(np.float32)
    # float32 sums in another order; normalisation of so few numbers magnifies them.
    compare_forms(tmp_path / "plain.onnx", tmp_path, latent, matches=2, limit=1e-5)


def test_a_traced_decoder(tiny_graphs: Path, tmp_path: Path) -> None:
    latent = np.random.default_rng(0).normal(size=(2, 4, 6, 5)).astype(np.float32)
    # As above.
    compare_forms(tiny_graphs / "decoder.onnx", tmp_path, latent, matches=2, limit=1e-5)


@pytest.mark.slow
def test_full_size_decoder(full_size_bundle: Bundle, tmp_path: Path) -> None:
    latent = np.random.default_rng(0).normal(size=(1, 4, 16, 16)).astype(np.float32)
    # 7.4e-7 and 7.8e-7 were measured: two orders of summation in float32.
    compare_forms(full_size_bundle.graph("decoder"), tmp_path, latent, matches=3, limit=3e-6)
