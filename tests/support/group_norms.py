"""Group normalisation as PyTorch's exporter writes it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EPSILON = 1e-6


def group_norm(
    channels: int = 8,
    groups: int = 4,
    rank: int = 4,
    *,
    inner_scale: float = 1.0,
    back: str = "Shape",
    scalar_gamma: bool = False,
    known_channels: bool = True,
    reshaped: tuple[int, int, int] | None = None,
) -> onnx.ModelProto:
    """GroupNorm as torch's exporter writes it, with weights that are not the default ones."""
    rng = np.random.default_rng(channels)
    column = [channels] + [1] * (rank - 2)
    tensors = {
        "groups": np.array(reshaped or (0, groups, -1)),
        "ones": np.full(groups, inner_scale, np.float32),
        "zeros": np.zeros(groups, np.float32),
        "gamma": np.float32(2) if scalar_gamma else rng.normal(1, 0.5, column).astype(np.float32),
        "beta": rng.normal(0, 0.5, column).astype(np.float32),
        "fixed": np.array([1, channels] + [4] * (rank - 2)),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "groups"], ["grouped"]),
        helper.make_node("InstanceNormalization", ["grouped", "ones", "zeros"], ["normal"], epsilon=EPSILON),
        helper.make_node("Shape", ["x"], ["size"], **({"start": 0} if back == "Shape" else {})),
        helper.make_node("Reshape", ["normal", "size" if back == "Shape" else "fixed"], ["back"]),
        helper.make_node("Mul", ["back", "gamma"], ["scaled"]),
        helper.make_node("Add", ["scaled", "beta"], ["y"]),
    ]
    names = ["batch", channels if known_channels else "channels", "height", "width"][:rank]
    graph = helper.make_graph(
        nodes,
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, names)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, names)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)
