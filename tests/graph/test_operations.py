"""Operations are counted as the formulas say, at the sizes given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from vaedeploy.bundle import Bundle
from vaedeploy.errors import InputError
from vaedeploy.graph.graph import Graph, load_graph, save_graph
from vaedeploy.graph.operations import OperatorCount, count_operations
from vaedeploy.graph.sizes import evaluate
from vaedeploy.rewrite.upsample import fold_upsampling


def graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    tensors: dict[str, np.ndarray] | None = None,
    output: str = "y",
    domains: tuple[str, ...] = (),
) -> ir.Model:
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (tensors or {}).items()],
    )
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return ir.from_proto(helper.make_model(made, opset_imports=opsets, ir_version=10))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


IMAGE = {"x": ["b", 4, "h", "w"]}
SIZES = {"b": 2, "h": 10, "w": 12}
ATTENTION = {"q": ["n", 7, 6], "k": ["n", 5, 6], "v": ["n", 5, 8]}
NODES: dict[str, tuple[ir.Model, dict[str, int], int]] = {
    "Conv": (
        graph([helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 2])], IMAGE, {"w": zeros(6, 2, 3, 3)}),
        SIZES,
        2 * (2 * 6 * 4 * 5) * (2 * 3 * 3),
    ),
    "ConvTranspose": (
        graph([helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])], IMAGE, {"w": zeros(4, 3, 4, 4)}),
        SIZES,
        2 * (2 * 4 * 10 * 12) * (3 * 4 * 4),
    ),
    "MatMul": (
        graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["b", 3, "n"]}, {"w": zeros(5, 8)}),
        {"b": 2, "n": 5},
        2 * (2 * 3 * 8) * 5,
    ),
    "Gemm": (
        graph([helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)], {"x": ["n", 3]}, {"w": zeros(5, 8)}),
        {"n": 5},
        2 * (3 * 8) * 5,
    ),
    "MultiHeadAttention": (
        graph(
            [helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=2)],
            ATTENTION,
            domains=("com.microsoft",),
        ),
        {"n": 2},
        2 * 2 * 7 * 5 * (6 + 8),
    ),
}
NODES["NhwcConv"] = (
    graph(
        [helper.make_node("NhwcConv", ["x", "w"], ["y"], domain="com.microsoft", kernel_shape=[3, 3])],
        {"x": ["b", "h", "w", 4]},
        {"w": zeros(6, 3, 3, 4)},
        domains=("com.microsoft",),
    ),
    SIZES,
    2 * (2 * 8 * 10 * 6) * (3 * 3 * 4),
)
NODES["NhwcConv"][0].graph.outputs[0].shape = ir.Shape(["b", "h - 2", "w - 2", 6])
NODES["MultiHeadAttention"][0].graph.outputs[0].shape = ir.Shape(["n", 7, 8])  # what a rule writes


@pytest.mark.parametrize("operator", NODES)
def test_formulas(operator: str) -> None:
    model, sizes, expected = NODES[operator]
    counted = count_operations(model, sizes)
    assert counted.operators == (OperatorCount(operator, 1, expected),)
    assert (counted.total, counted.uncounted) == (expected, ())
    assert counted.convolutions == (expected if "Conv" in operator else 0)


def test_reshapes_to_computed_sizes_are_followed() -> None:
    """As TorchScript writes attention's: ONNX's own inference stops at the Reshape."""
    tensors = {"2": np.array(2), "3": np.array(3), "half": np.array(2), "axis": np.array([0]), "flat": np.array([-1])}
    tensors |= {"rest": np.array([4, -1]), "weight": zeros(60, 5)}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "2"], ["h"]),
        helper.make_node("Div", ["h", "half"], ["half_h"]),
        helper.make_node("Reshape", ["half_h", "flat"], ["rows"]),
        helper.make_node("Concat", ["rows", "rest"], ["size"], axis=0),
        helper.make_node("Reshape", ["x", "size"], ["table"]),
        helper.make_node("MatMul", ["table", "weight"], ["y"], name="product"),
    ]
    model = graph(nodes, {"x": [1, 4, "h", "w"]}, tensors)
    before = ir.to_proto(model).SerializeToString()
    counted = count_operations(model, {"h": 8, "w": 30})
    assert counted.operators == (OperatorCount("MatMul", 1, 2 * (4 * 4 * 5) * 60),)
    assert ir.to_proto(model).SerializeToString() == before


def test_what_is_not_known_is_told() -> None:
    tensors = {"w": zeros(3, 4)}
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Cast", ["where"], ["chosen"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["chosen"], ["turned"]),
        helper.make_node("MatMul", ["turned", "w"], ["y"], name="product"),
    ]
    counted = count_operations(graph(nodes, {"x": ["b", 2, "h"]}, tensors), {"b": 1, "h": 3})
    assert (counted.operators, counted.uncounted) == ((), ("product",))


def test_weights_are_counted_without_being_read(tmp_path: Path) -> None:
    model = NODES["Conv"][0].clone()
    save_graph(Graph(model, "decoder"), tmp_path / "decoder.onnx")
    loaded = load_graph(tmp_path / "decoder.onnx", "decoder").model
    for weights in tmp_path.glob("*.data"):
        weights.unlink()
    counted = count_operations(loaded, SIZES)
    assert (counted.weight_bytes, counted.total) == (6 * 2 * 3 * 3 * 4, NODES["Conv"][2])


@pytest.mark.parametrize(
    ("inputs", "sizes", "message"),
    [
        (IMAGE, {"b": 1, "h": 2}, "sizes are given for b, h; the inputs' dimensions are b, h, w"),
        (IMAGE, {**SIZES, "z": 1}, "sizes are given for b, h, w, z; the inputs' dimensions are b, h, w"),
        ({"x": [1, 4, 8, 8]}, SIZES, "sizes are given for b, h, w; the inputs' dimensions are all fixed"),
        (
            {"x": [1, 4, None, 8]},
            {},
            "input x has a dimension without a name; give it one to count at a size",
        ),
    ],
)
def test_sizes_must_fit_the_inputs(inputs: dict[str, list[Any]], sizes: dict[str, int], message: str) -> None:
    model = graph([helper.make_node("Neg", ["x"], ["y"])], inputs)
    with pytest.raises(InputError) as raised:
        count_operations(model, sizes)
    assert str(raised.value) == message


def test_only_what_sizes_are_computed_with_is_evaluated() -> None:
    model = graph(
        [helper.make_node("Shape", ["x"], ["s"], start=-2), helper.make_node("Relu", ["x"], ["y"])],
        {"x": ["h", 3, "w"]},
    )
    shape, image = (node.outputs[0] for node in model.graph)
    assert evaluate(shape, 20) is None
    np.testing.assert_array_equal(evaluate(shape, 20, {"w": 5}), [3, 5])
    np.testing.assert_array_equal(evaluate(shape, 20, shapes={model.graph.inputs[0]: [1, 2, 4]}), [2, 4])
    assert evaluate(image, 20, {"h": 1, "w": 1}) is None


def test_a_traced_decoder(tiny_graphs: Path) -> None:
    model = ir.load(tiny_graphs / "decoder.onnx")
    sizes = {"batch": 3, "latent_height": 5, "latent_width": 6}
    pixels, (first, second, third) = 3 * 5 * 6, (4 * 8, 8 * 8, 8 * 3)
    plain = count_operations(model, sizes)
    assert plain.convolutions == plain.total == 2 * pixels * 9 * (first + 4 * second + 16 * third)
    fold_upsampling(model, "convolutions")
    assert count_operations(model, sizes).total == 2 * pixels * (9 * first + 16 * second + 64 * third)


@pytest.mark.slow
def test_the_architecture_of_stable_diffusion(full_size_bundle: Bundle) -> None:
    """The published figures at 512x512, and the fold's share from its formula: 5/9 of three layers."""
    model = ir.load(full_size_bundle.graph("encoder"))
    encoder = count_operations(model, {"batch": 1, "height": 512, "width": 512})
    assert (round(encoder.total / 1e12, 3), encoder.uncounted) == (1.117, ())
    model = ir.load(full_size_bundle.graph("decoder"))
    sizes = {"batch": 1, "latent_height": 64, "latent_width": 64}
    plain = count_operations(model, sizes)
    assert (round(plain.total / 1e12, 3), plain.uncounted) == (2.515, ())
    fold_upsampling(model, "convolutions")
    folded = count_operations(model, sizes)
    saved = plain.total - folded.total
    layers = 2 * 9 * (128**2 * 512 * 512 + 256**2 * 512 * 512 + 512**2 * 256 * 256)
    assert saved * 9 == layers * 5
    assert saved == plain.convolutions - folded.convolutions
    assert round(100 * saved / plain.convolutions, 1) == 15.6
    assert round(100 * saved / plain.total, 1) == 15.4
