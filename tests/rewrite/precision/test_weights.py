"""The weights of a half-precision graph: rounded once, counted where they underflow, refused where they overflow."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from lowered import EYE, FLOAT, between_convolutions, checked, node, normal

from vaedeploy.errors import InputError
from vaedeploy.graph.graph import Graph, load_graph, save_graph
from vaedeploy.rewrite.precision import Underflow, lower_precision


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
