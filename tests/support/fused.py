"""Small graphs for the rules of ONNX Runtime's CUDA provider, and what holds for every graph that they write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from cuda_operators import evaluator
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vaedeploy.rewrite.outcome import Outcome, Refusal

IMAGE = ("batch", 8, "height", "width")


def node(operator: str, inputs: str, output: str, name: str | None = None, **attributes: Any) -> onnx.NodeProto:
    """Inputs by their names, and "_" for one that is left out."""
    names = ["" if given == "_" else given for given in inputs.split()]
    return helper.make_node(operator, names, [output], name=f"at_{output}" if name is None else name, **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, Any] | None = None,
    *,
    shapes: dict[str, Sequence[int | str]] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 20,
    inferred: bool = True,
) -> onnx.ModelProto:
    """``nodes`` in float32 with those of ``tensors`` that they read, from ``shapes`` to ``outputs``.

    shapes: of the inputs; by default x, an image of 8 channels.
    """
    constants = {name: array for name, array in (tensors or {}).items() if any(name in n.input for n in nodes)}
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (shapes or {"x": IMAGE}).items()],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("other", 1)],
        ir_version=10,
    )
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True) if inferred else model


def draw(*shape: int, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, shape).astype(np.float32)


def convolution(x: str, output: str, name: str, **attributes: Any) -> onnx.NodeProto:
    """3x3 of ``x``, with weights ``NAMEw`` and bias ``NAMEb``: see ``weights``."""
    return node("Conv", f"{x} {name}w {name}b", output, **{"pads": [1, 1, 1, 1], **attributes})


def weights(name: str, outputs: int = 8, inputs: int = 8, kernel: tuple[int, int] = (3, 3)) -> dict[str, np.ndarray]:
    """Of a convolution that keeps the size of numbers."""
    seed, area = sum(map(ord, name)), inputs * kernel[0] * kernel[1]
    return {
        f"{name}w": draw(outputs, inputs, *kernel, seed=seed) / np.float32(np.sqrt(area)),
        f"{name}b": draw(outputs, seed=seed + 1),
    }


Rule = Callable[[ir.Model, set[str]], Outcome]


def rewritten(
    model: onnx.ModelProto, *rules: Rule, keep: set[str] | None = None
) -> tuple[onnx.ModelProto, list[Outcome]]:
    """A copy after ``rules``, which is valid and has the inputs and outputs that it had, and what the rules say."""
    new, kept = ir.from_proto(model), set() if keep is None else keep
    outcomes = [rule(new, kept) for rule in rules]
    RemoveUnusedNodesPass()(new)
    proto = ir.to_proto(new)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.input] == [value.name for value in model.graph.input]
    assert [value.name for value in proto.graph.output] == [value.name for value in model.graph.output]
    names = [name for n in proto.graph.node for name in n.output] + [t.name for t in proto.graph.initializer]
    assert len(set(names)) == len(names)
    read = {name for n in proto.graph.node for name in n.input} | {value.name for value in proto.graph.output}
    assert {tensor.name for tensor in proto.graph.initializer} <= read
    return proto, outcomes


def refusals(model: onnx.ModelProto, rule: Rule) -> list[Refusal]:
    """What a rule says that leaves the graph as it is."""
    new = ir.from_proto(model)
    for each in new.graph:
        ir.convenience.get_const_tensor(each.outputs[0])  # reading a Constant gives its tensor a name
    before = ir.to_proto(new).SerializeToString()
    outcome = rule(new, set())
    assert outcome.matches == 0
    assert ir.to_proto(new).SerializeToString() == before
    return list(outcome.refusals)


def assert_same(
    new: onnx.ModelProto, model: onnx.ModelProto, x: np.ndarray | dict[str, np.ndarray], tolerance: float = 0.0
) -> None:
    """Every output of ``new`` is that of ``model``, but for ``tolerance`` times the largest number of it."""
    feed = x if isinstance(x, dict) else {"x": x}
    results = evaluator(new).run(None, feed), evaluator(model).run(None, feed)
    for value, found, expected in zip(model.graph.output, *results, strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), value.name
        assert np.isfinite(expected).all()
        size = float(np.abs(expected).max(initial=0))
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * size, err_msg=value.name)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
