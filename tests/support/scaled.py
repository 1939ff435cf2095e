"""Graphs whose tensors overflow float16, and the checks that every rescaled graph must pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vaedeploy.numerics.maxima import measure_maxima
from vaedeploy.rewrite.rescale import Rescale, rescale

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
AXES = {"axes": np.array([1]), "two": np.float32(2), "e": np.float32(1e3)}


DECOMPOSED = [
    node("ReduceMean", "h axes", "mean"),
    node("Sub", "h mean", "d"),
    node("Pow", "d two", "d2"),
    node("ReduceMean", "d2 axes", "v"),
    node("Add", "v e", "ve"),
    node("Sqrt", "ve", "sd"),
]
SCALARS = {"c": np.float32(3), "d": np.float32(0.5)}
FIT = {"x": 1.0, "h": 1.0, "r": 1.0, "y": 1.0}


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


def run_file(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)


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
