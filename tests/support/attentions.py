"""Attention as exporters write it."""

from __future__ import annotations

import numpy as np
import onnx

PLAIN = "s = MatMul(q, k) p = Softmax<axis=-1>(s) y = MatMul(p, v)"
ONE_HEAD = {"q": "b,n,8", "k": "b,8,m", "v": "b,m,6", "y": "b,n,6"}
HEADS = {"q": "b,h,n,8", "k": "b,h,8,m", "v": "b,h,m,6", "y": "b,h,n,6"}


def attention(
    nodes: str = PLAIN,
    *,
    shapes: dict[str, str] = HEADS,
    type: str = "double",
    opset: int = 20,
    more: str = "",
    outputs: str = "",
    inferred: bool = True,
) -> onnx.ModelProto:
    """q (..., N, D), k (..., D, M), v (..., M, E) -> y (..., N, E). more, outputs: other inputs and outputs."""
    q, k, v, y = (f"{type}[{shapes[name]}] {name}" for name in "qkvy")
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}, "other" : 1]> '
        f"attention ({q}, {k}, {v}{more}) => ({y}{outputs}) {{ {nodes} }}"
    )
    for node in model.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(model, data_prop=True) if inferred else model


def draw(seed: int, dtype: type = np.float64, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Normal numbers for inputs of these names and shapes."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 1, shape).astype(dtype) for name, shape in shapes.items()}
