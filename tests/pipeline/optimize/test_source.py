"""Graphs that would take for ever, or that no other program could load."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from upsamplers import upsampler

from vaedeploy.errors import InputError
from vaedeploy.pipeline.optimize import optimize_onnx, source

SHAPE = ["batch", 3, "height", "width"]


def saved(
    path: Path, nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray] | None = None, **more: object
) -> Path:
    """A graph from x to y, both (batch, 3, height, width), with ``more`` of the arguments of ``make_model``."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
        [numpy_helper.from_array(array, name) for name, array in (tensors or {}).items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10, **more), path)
    return path


def relu(name: str, operator: str = "Relu", domain: str = "") -> list[onnx.NodeProto]:
    return [helper.make_node(operator, ["x"], ["m"], name, domain=domain), helper.make_node("Relu", ["m"], ["y"])]


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        optimize_onnx(path, path.with_name("out.onnx"))
    assert not path.with_name("out.onnx").exists()
    return str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "9**9**9**9",
        "(" * 40 + "height" + ")" * 40,
        "height*" * 40 + "height",
        "height/0",
        "max()",
        "9" * 40,
        "h" * 3000,
    ],
)
def test_a_name_that_no_exporter_gives_is_taken_as_a_name(tmp_path: Path, name: str) -> None:
    model = onnx.load(saved(tmp_path / "in.onnx", relu("first")))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = name
    onnx.save(model, tmp_path / "in.onnx")
    optimized = optimize_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert len(optimized.sizes) == 3


def test_a_dimension_that_comes_to_nothing(tmp_path: Path) -> None:
    model = onnx.load(saved(tmp_path / "in.onnx", relu("first")))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height-100"
    onnx.save(model, tmp_path / "in.onnx")
    assert optimize_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx").not_compared == (
        "dimension 2 of input x is height-100, which for height=64 comes to -36. Give other --sizes. "
        "Give --inputs to compare on those"
    )


@pytest.mark.parametrize("size", [-3, 0, 1.5, "8", 10**30])
def test_sizes_that_no_dimension_has(tmp_path: Path, size: object) -> None:
    graph = upsampler(tmp_path / "in.onnx")
    with pytest.raises(InputError) as error:
        optimize_onnx(graph, tmp_path / "out.onnx", sizes={"batch": size})  # type: ignore[dict-item]
    assert str(error.value) == f"sizes has batch={size!r}; a size is a whole number from 1 to 2147483647"


def test_functions_that_double(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "f0", ["x"], ["y"], relu(""), opsets)]
    for depth in range(1, 60):
        calls = [helper.make_node(f"f{depth - 1}", [a], [b], domain="own") for a, b in (("x", "m"), ("m", "y"))]
        functions.append(helper.make_function("own", f"f{depth}", ["x"], ["y"], calls, opsets))
    graph = saved(tmp_path / "in.onnx", relu("", "f59", "own"), functions=functions)
    assert f"has {2**60 + 1:,} nodes in {2**60 - 1:,} calls of functions; 10,000 nodes in 2,000 calls" in refused(graph)
    graph = saved(tmp_path / "in.onnx", relu("", "f3", "own"), functions=functions[:4])
    assert optimize_onnx(graph, tmp_path / "made.onnx").not_compared is None
    functions[0].node[0].op_type, functions[0].node[0].domain = "f3", "own"
    graph = saved(tmp_path / "in.onnx", relu("", "f3", "own"), functions=functions[:4])
    assert refused(graph) == f"{graph} has functions that call themselves, or each other too deeply: f3"


def test_a_chain_is_refused_by_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MOST_NODES", 100)
    names = ["x", *(f"v{index}" for index in range(100)), "y"]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    assert "has 101 nodes in 0 calls of functions; 100 nodes" in refused(saved(tmp_path / "in.onnx", nodes))


def test_a_long_chain_of_sizes_is_no_recursion(tmp_path: Path) -> None:
    sums = [helper.make_node("Add", [f"s{index}", "zero"], [f"s{index + 1}"]) for index in range(1200)]
    nodes = [helper.make_node("Shape", ["x"], ["s0"]), *sums, helper.make_node("ConstantOfShape", ["s1200"], ["y"])]
    graph = saved(tmp_path / "in.onnx", nodes, {"zero": np.zeros(1, np.int64)})
    assert optimize_onnx(graph, tmp_path / "out.onnx").not_compared is None


def test_constants_of_nodes_that_lie_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    constant = numpy_helper.from_array(np.arange(3, dtype=np.float32).reshape(3, 1, 1), "three")
    nodes = [
        helper.make_node("Constant", [], ["three"], value=constant),
        helper.make_node("Add", ["x", "three"], ["sum"]),
        helper.make_node("Mul", ["sum", "two"], ["y"]),
    ]
    model = onnx.load(saved(tmp_path / "in.onnx", nodes, {"two": np.array([2], np.float32)}))
    outside = {"save_as_external_data": True, "location": "weights", "size_threshold": 0, "convert_attribute": True}
    onnx.save_model(model, tmp_path / "in.onnx", **outside)
    optimized = optimize_onnx(tmp_path / "in.onnx", tmp_path / "elsewhere" / "out.onnx")
    assert [difference.relative_l2 for difference in optimized.differences] == [0.0]
    (tmp_path / "weights").unlink()
    onnx.load(tmp_path / "elsewhere" / "out.onnx")
    assert "has its weights in another file, weights, and there is no" in refused(tmp_path / "in.onnx")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.onnx")
    assert (
        refused(tmp_path / "in.onnx") == f"{tmp_path / 'in.onnx'} is a device or a pipe, not a file; give an .onnx file"
    )


def test_weights_that_are_not_as_large_as_they_say(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "one"], ["y"])]
    model = onnx.load(saved(tmp_path / "in.onnx", nodes, {"one": np.ones(3, np.float32)}))
    model.graph.initializer[0].dims[0] = 4
    onnx.save(model, tmp_path / "in.onnx")
    assert "has a weight one that cannot be read: " in refused(tmp_path / "in.onnx")


def test_a_negative_dimension_is_no_name(tmp_path: Path) -> None:
    model = onnx.load(saved(tmp_path / "in.onnx", relu("first")))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(model, tmp_path / "in.onnx")
    assert "in.onnx has the input x of shape [-1,3,height,width]; a dimension of any size has a name" in refused(
        tmp_path / "in.onnx"
    )
