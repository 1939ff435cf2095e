"""A rewritten graph beside the graph that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from group_norms import group_norm
from onnx import helper, numpy_helper
from upsamplers import upsampler

from vaedeploy.errors import InputError
from vaedeploy.graph.graph import Graph, load_graph, save_form, save_graph
from vaedeploy.rewrite import names_in, rewrite_graph


def test_the_given_graph_is_not_changed() -> None:
    model = ir.from_proto(group_norm())
    before = ir.to_proto(model).SerializeToString()
    rewrite_graph(Graph(model, "decoder"))
    assert ir.to_proto(model).SerializeToString() == before


def test_forms_share_the_weights_file(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32), "w")
    model = group_norm()
    model.graph.initializer.append(weight)
    model.graph.node[0].input[0] = "convolved"
    model.graph.node[2].input[0] = "convolved"
    model.graph.node.insert(0, helper.make_node("Conv", ["x", "w"], ["convolved"], pads=[1, 1, 1, 1]))
    model = onnx.shape_inference.infer_shapes(model)
    save_graph(Graph(ir.from_proto(model), "decoder"), tmp_path / "decoder.onnx")
    save_form(rewrite_graph(load_graph(tmp_path / "decoder.onnx", "decoder")).graph, tmp_path / "decoder.ort.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decoder.onnx", "decoder.onnx.data", "decoder.ort.onnx"]
    form = onnx.load(tmp_path / "decoder.ort.onnx", load_external_data=False)
    (kept,) = [i for i in form.graph.initializer if i.name == "w"]
    assert {e.key: e.value for e in kept.external_data}["location"] == "decoder.onnx.data"
    x = np.random.default_rng(1).normal(size=(2, 8, 12, 20)).astype(np.float32)
    found, expected = (
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("decoder.ort.onnx", "decoder.onnx")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_nodes_stay_in_float32_with_all_that_is_made_of_them(tmp_path: Path) -> None:
    model = ir.load(upsampler(tmp_path / "in.onnx"))
    assert names_in(model, ["conv_out", "conv_out.phase.1", "conv_o", "nowhere"]) == {"conv_out", "conv_out.phase.1"}
    lowered = rewrite_graph(Graph(model, "decoder"), precision="fp16", keep_fp32=["conv_out"]).graph.model
    types = {node.name: node.inputs[1].dtype for node in lowered.graph if node.op_type == "Conv"}
    made = {name for name in types if name != "conv_in"}
    assert len(made) == 4  # the folded upsampling's
    assert {types[name] for name in made} == {ir.DataType.FLOAT}
    assert types["conv_in"] == ir.DataType.FLOAT16


def test_the_form_for_openvino_has_short_sums_transposed_convolutions_and_no_loop(tmp_path: Path) -> None:
    model = ir.load(upsampler(tmp_path / "in.onnx"))
    made = rewrite_graph(Graph(model, "decoder"), "openvino").graph.model
    kinds = {node.op_type for node in made.graph}
    assert "ConvTranspose" in kinds
    assert not kinds & {"Resize", "Loop"}
    norm = rewrite_graph(Graph(ir.from_proto(group_norm()), "decoder"), "openvino").graph.model
    assert "InstanceNormalization" not in {node.op_type for node in norm.graph}


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"precision": "fp16"}, {"rules": False}])
def test_openvino_lowers_its_form_itself(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the form for OpenVINO is one of rewrites in fp32: OpenVINO itself lowers it"):
        rewrite_graph(Graph(ir.from_proto(group_norm()), "decoder"), "openvino", **options)
