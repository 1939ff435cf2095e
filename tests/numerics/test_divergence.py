"""Every tensor of one graph against another's, by numbers that numpy gives too."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vaedeploy.errors import BackendError
from vaedeploy.graph.graph import load_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.numerics.divergence import measure_differences
from vaedeploy.numerics.maxima import measure_maxima
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.rewrite.rescale import rescale
from vaedeploy.testing.tiny import tiny_reference
from vaedeploy.values.kinds import Part

X = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"at_{outputs.split()[0]}", **attributes)


def graph(nodes: list[onnx.NodeProto], **tensors: np.ndarray) -> ir.Model:
    """x (batch, n) -> ``nodes`` -> what the last of them makes."""
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "n"])],
            [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def scaled_by(factor: float) -> ir.Model:
    nodes = [node("Mul", "x factor", "h"), node("Abs", "h", "a"), node("Neg", "a", "y")]
    return graph(nodes, factor=np.float32(factor))


def lowered_by(factor: float, dtype: int) -> ir.Model:
    array = np.array(factor, helper.tensor_dtype_to_np_dtype(dtype))
    nodes = [
        node("Cast", "x", "low", to=dtype),
        node("Mul", "low factor", "h"),
        node("Abs", "h", "a"),
        node("Cast", "a", "wide", to=TensorProto.FLOAT),
        node("Neg", "wide", "y"),
    ]
    return graph(nodes, factor=array)


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    error = found.astype(np.float64) - expected.astype(np.float64)
    return float(np.linalg.norm(error) / (np.linalg.norm(expected.astype(np.float64)) or 1.0))


def test_numbers_and_what_a_tensor_is_made_from() -> None:
    found = measure_differences(scaled_by(2), scaled_by(2.5), {"x": X})
    assert [(d.tensor, d.node, d.operator, d.module, d.precision, d.sources) for d in found] == [
        ("h", "at_h", "Mul", "", "FLOAT", ()),
        ("a", "at_a", "Abs", "", "FLOAT", ("h",)),
        ("y", "at_y", "Neg", "", "FLOAT", ("a",)),
    ]
    for difference in found:
        assert difference.rel_l2 == pytest.approx(0.25, rel=1e-6)
        assert difference.largest == 2 * np.abs(X).max()
        assert difference.non_finite == 0


@pytest.mark.parametrize("lower", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_rounded_where_it_is_made(lower: type) -> None:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(lower))
    h, a, y = measure_differences(scaled_by(3), lowered_by(3, dtype), {"x": X})
    rounded = (X.astype(lower).astype(np.float32) * 3).astype(lower)
    assert (h.precision, a.precision, y.precision) == (dtype_name := ir.DataType(dtype).name, dtype_name, "FLOAT")
    # Sums of 150 squares in float32.
    assert h.rel_l2 == pytest.approx(relative_l2(rounded, 3 * X), rel=1e-4)
    assert a.rel_l2 == pytest.approx(h.rel_l2, rel=1e-6) == y.rel_l2


def test_what_overflows() -> None:
    x = np.concatenate([X, np.full((1, 50), 4.0, np.float32)])
    h, a, y = measure_differences(scaled_by(2e4), lowered_by(2e4, TensorProto.FLOAT16), {"x": x})
    share = float(np.mean(np.abs(x.astype(np.float16).astype(np.float32) * 2e4) >= 65520))
    assert share >= 0.25
    for difference in (h, a, y):
        assert not np.isfinite(difference.rel_l2)
        assert difference.non_finite == pytest.approx(share, rel=1e-6)
        assert difference.largest == 8e4


def test_what_is_stored_by_another_power_of_two() -> None:
    exponents = dict.fromkeys("hay", -3)
    for difference in measure_differences(scaled_by(2), scaled_by(2 * 2**-3), {"x": X}, exponents):
        assert difference.rel_l2 == 0
        assert difference.largest == np.abs(X).max() / 4
    unaware = measure_differences(scaled_by(2), scaled_by(2 * 2**-3), {"x": X})
    assert [d.rel_l2 for d in unaware] == pytest.approx([7 / 8] * 3)


def test_products_on_the_way_count_and_other_tensors_do_not() -> None:
    """What the candidate has no name for."""
    w = np.ones((50, 50), np.float32)
    nodes = [
        node("Mul", "x big", "many"),
        node("MatMul", "many w", "scores"),
        node("Mul", "scores small", "few"),
        node("Neg", "few", "y"),
    ]
    reference = graph(nodes, w=w, big=np.float32(1e6), small=np.float32(1e-6))
    candidate = graph([node("MatMul", "x w", "other"), node("Neg", "other", "y")], w=w)
    (y,) = measure_differences(reference, candidate, {"x": X})
    assert (y.tensor, y.sources) == ("y", ())
    assert y.largest == pytest.approx(1e6 * np.abs(X.sum(axis=1)).max(), rel=1e-5)
    assert y.rel_l2 < 1e-5


def test_nothing_is_compared_behind_a_step() -> None:
    nodes = [node("Mul", "x factor", "h"), node("Round", "h", "r"), node("Neg", "r", "y")]
    model = graph(nodes, factor=np.float32(2))
    assert [d.tensor for d in measure_differences(model, model, {"x": X})] == ["h"]


def test_nodes_in_another_order_and_names_that_are_taken() -> None:
    two = [node("Sin", "x", "a"), node("Cos", "x", "reference/a")]
    last = node("Add", "a reference/a", "y")
    reference, candidate = graph([*two, last]), graph([*two[::-1], last])
    found = measure_differences(reference, candidate, {"x": X})
    assert [d.tensor for d in found] == ["a", "reference/a", "y"]
    assert [d.rel_l2 for d in found] == [0, 0, 0]


def test_a_zero_reference() -> None:
    found = measure_differences(scaled_by(0), scaled_by(1), {"x": X})
    assert found[0].rel_l2 == pytest.approx(np.linalg.norm(X), rel=1e-5)
    assert measure_differences(scaled_by(0), scaled_by(0), {"x": X})[0].rel_l2 == 0


def test_graphs_without_a_common_name_and_what_onnx_runtime_refuses() -> None:
    assert measure_differences(scaled_by(1), graph([node("Neg", "x", "other"), node("Abs", "other", "z")]), {}) == []
    with pytest.raises(BackendError, match=r"^ONNX Runtime failed to compare the graphs: "):
        measure_differences(scaled_by(1), scaled_by(1), {"x": X[0]})


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_traced_graph_and_its_forms(tiny_graphs: Path, part: Part) -> None:
    """Against the maxima that ``calibrate`` measures; the graphs given are not changed."""
    traced = load_graph(tiny_graphs / f"{part}.onnx", part)
    shape = (2, 4, 6, 5) if part == "decoder" else (2, 3, 24, 20)
    feed = {traced.model.graph.inputs[0].name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    maxima = measure_maxima(traced.model, [feed])
    convolutions = [n.outputs[0].name for n in traced.model.graph if n.op_type == "Conv"]
    assert len(convolutions) == 3
    for precision, least, most in (("fp32", 0, 2e-6), ("fp16", 1e-5, 5e-3), ("bf16", 1e-4, 5e-2)):
        form = rewrite_graph(traced, "onnxruntime" if precision != "bf16" else "tensorrt", precision).graph.model
        before = ir.to_proto(traced.model).SerializeToString(), ir.to_proto(form).SerializeToString()
        found = {d.tensor: d for d in measure_differences(traced.model, form, feed)}
        assert (ir.to_proto(traced.model).SerializeToString(), ir.to_proto(form).SerializeToString()) == before
        assert set(convolutions) <= found.keys()
        for name in convolutions:
            assert found[name].module.startswith(f"{part}.body.")
            assert found[name].largest == pytest.approx(maxima[name], rel=1e-4)
        assert all(d.rel_l2 <= most for d in found.values())
        assert max(d.rel_l2 for d in found.values()) >= least
    # Rescaled: the same errors as if there were nothing to scale, a power of two being exact.
    scaled = traced.model.clone()
    done = rescale(scaled, {name: 1e6 * maximum for name, maximum in maxima.items()})
    assert done.exponents.keys() & set(convolutions)
    again = measure_differences(traced.model, scaled, feed, done.exponents)
    assert max(d.rel_l2 for d in again) < 1e-6
    assert max(d.rel_l2 for d in measure_differences(traced.model, scaled, feed)) > 0.9


@pytest.mark.slow
def test_a_tensor_inside_is_what_the_reference_evaluator_gives(tiny_graphs: Path) -> None:
    traced = load_graph(tiny_graphs / "decoder.onnx", "decoder")
    other = trace_graph(tiny_reference(seed=1), "decoder")
    feed = {"latent": np.random.default_rng(0).normal(size=(1, 4, 3, 5)).astype(np.float32)}
    found = {d.tensor: d for d in measure_differences(traced.model, other.model, feed)}
    results = []
    for model in (other.model, traced.model):
        proto = ir.to_proto(model)
        del proto.graph.output[:]
        proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in found)
        results.append(dict(zip(found, ReferenceEvaluator(proto).run(None, feed), strict=True)))
    for name, difference in found.items():
        assert difference.rel_l2 == pytest.approx(relative_l2(results[0][name], results[1][name]), rel=1e-4)
