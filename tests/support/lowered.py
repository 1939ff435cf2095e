"""Graphs to be lowered to half precision, and the checks that every lowered graph must pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from vaedeploy.numerics.emulation import emulate
from vaedeploy.rewrite.precision import Lowering, lower_precision

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
