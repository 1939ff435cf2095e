"""A folded Pad changes no number, and stays where folding it would."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from examples import at_most
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vaedeploy.rewrite.padding import fold_padding


def padded(
    pads: list[int],
    *,
    axes: list[int] | None = None,
    value: float | None = 0.0,
    mode: str = "constant",
    conv: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    nodes: list[onnx.NodeProto] | None = None,
    inputs: dict[str, list[int]] | None = None,
    outputs: tuple[str, ...] = ("y",),
) -> onnx.ModelProto:
    """x (B, 2, H, W) -> Pad -> Conv 3x3 -> y, in float64."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(3, 2, 3, 3)), "b": rng.normal(size=3)}
    weights |= {"pads": np.array(pads, np.int64)} if pads else {}
    weights |= {} if value is None else {"value": np.array(value)}
    weights |= {} if axes is None else {"axes": np.array(axes, np.int64)}
    named = ["x", "pads", "" if value is None else "value", *([] if axes is None else ["axes"])]
    graph = helper.make_graph(
        [
            *(nodes or []),
            helper.make_node("Pad", named, ["padded"], name="pad", mode=mode),
            helper.make_node("Conv", ["padded", "w", "b"], ["y"], name="conv", **(conv or {})),
        ],
        "padding",
        [
            helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["batch", 2, "height", "width"]),
            *(helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n, shape in (inputs or {}).items()),
        ],
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [None] * 4) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights | (tensors or {})).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    new = ir.from_proto(model)
    outcome = fold_padding(new)
    assert (outcome.rule, outcome.matches, outcome.refusals) == ("fold_padding", 1, ())
    proto = ir.to_proto(new)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


counts = st.lists(st.integers(0, 3), min_size=4, max_size=4)


@at_most(30)
@given(
    pad=counts,
    own=counts,
    strides=st.sampled_from([[1, 1], [2, 2], [1, 2]]),
    value=st.sampled_from([0.0, None]),
    named_axes=st.booleans(),
    height=st.integers(3, 7),
    width=st.integers(3, 7),
    seed=st.integers(0, 2**31),
)
def test_equation_holds(
    pad: list[int],
    own: list[int],
    strides: list[int],
    value: float | None,
    named_axes: bool,
    height: int,
    width: int,
    seed: int,
) -> None:
    top, left, bottom, right = pad
    conv = {"pads": own, "strides": strides}
    if named_axes:
        model = padded([left, top, right, bottom], axes=[-1, 2], value=value, conv=conv)
    else:
        model = padded([0, 0, top, left, 0, 0, bottom, right], value=value, conv=conv)
    new = folded(model)
    assert operators(new) == ["Conv"]
    x = np.random.default_rng(seed).normal(size=(2, 2, height, width))
    found, expected = (ReferenceEvaluator(which).run(None, {"x": x})[0] for which in (new, model))
    # The same products and sums; only numpy's blocking may differ with the layout.
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


def test_computed_pads() -> None:
    """As torch's TorchScript exporter writes them: reversed pairs, through ConstantOfShape, Slice and Transpose."""
    given = {"some": np.array([0, 1, 0, 1]), "four": np.array([4]), "pairs": np.array([-1, 2]), "flat": np.array([-1])}
    given |= {"first": np.array([-1]), "last": np.array([-(2**63) + 1]), "axis": np.array([0]), "step": np.array([-1])}
    nodes = [
        helper.make_node("ConstantOfShape", ["four"], ["rest"]),
        helper.make_node("Cast", ["rest"], ["zeros"], to=TensorProto.INT64),
        helper.make_node("Concat", ["some", "zeros"], ["all"], axis=0),
        helper.make_node("Reshape", ["all", "pairs"], ["table"]),
        helper.make_node("Slice", ["table", "first", "last", "axis", "step"], ["reversed"]),
        helper.make_node("Transpose", ["reversed"], ["turned"], perm=[1, 0]),
        helper.make_node("Reshape", ["turned", "flat"], ["pads"]),
    ]
    new = folded(padded([], nodes=nodes, tensors=given))
    assert operators(new) == ["Conv"]
    assert helper.get_node_attr_value(new.graph.node[0], "pads") == [0, 0, 1, 1]


def test_valid_is_no_padding_of_its_own() -> None:
    new = folded(padded([0, 0, 0, 0, 0, 0, 1, 1], conv={"auto_pad": "VALID"}))
    assert {a.name for a in new.graph.node[0].attribute} == {"pads"}
    assert helper.get_node_attr_value(new.graph.node[0], "pads") == [0, 0, 1, 1]


def test_other_readers_keep_the_pad() -> None:
    model = padded([0, 0, 1, 2, 0, 0, 0, 1], outputs=("y", "padded"))
    new = folded(model)
    assert operators(new) == ["Pad", "Conv"]
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 5))
    for found, expected in zip(*(ReferenceEvaluator(m).run(None, {"x": x}) for m in (new, model)), strict=True):
        # As above.
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


SPATIAL = [0, 0, 1, 1, 0, 0, 1, 1]
REFUSALS: list[tuple[str, str, dict[str, Any]]] = [
    ("pad", "its mode is reflect, not constant", {"pads": SPATIAL, "mode": "reflect"}),
    ("pad", "it pads with 1, not zero", {"pads": SPATIAL, "value": 1.0}),
    ("pad", "it pads the batch or the channels", {"pads": [0, 0, 1, 1, 1, 0, 1, 1]}),
    ("pad", "it crops: some of its padding is negative", {"pads": [0, 0, 1, 1, 0, 0, -1, 1]}),
    ("pad", "how much it pads is not constant", {"pads": [], "inputs": {"pads": [8]}}),
    (
        "conv",
        "its own padding follows from the image's size (SAME_UPPER)",
        {"pads": SPATIAL, "conv": {"auto_pad": "SAME_UPPER"}},
    ),
]


@pytest.mark.parametrize(("name", "reason", "options"), REFUSALS, ids=[reason for _, reason, _ in REFUSALS])
def test_refusals(name: str, reason: str, options: dict[str, Any]) -> None:
    model = ir.from_proto(padded(**options))
    before = ir.to_proto(model).SerializeToString()
    outcome = fold_padding(model)
    assert outcome.matches == 0
    assert [(refusal.node, refusal.reason) for refusal in outcome.refusals] == [(name, reason)]
    assert ir.to_proto(model).SerializeToString() == before


def test_a_pad_that_no_convolution_reads_as_its_image_is_left() -> None:
    model = padded(SPATIAL)
    model.graph.node[1].op_type = "Sum"
    del model.graph.node[1].input[1:]
    graph = ir.from_proto(model)
    assert [(r.node, r.reason) for r in fold_padding(graph).refusals] == [("pad", "no convolution reads it")]
