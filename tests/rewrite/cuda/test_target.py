"""``rewrite_graph`` for ONNX Runtime's CUDA provider: whole graphs, in fp16, as far as a CPU can judge them.

ONNX Runtime checks types and shapes of every node before it looks for kernels, and a CPU has none for these operators.
What they compute is judged by reference implementations.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from cuda_operators import evaluator
from exporters import Decoder, export_decoder
from fused import convolution, draw, graph, node, operators, weights
from onnx_ir.passes.common import ShapeInferencePass

from vaedeploy.bundle import Bundle
from vaedeploy.errors import InputError
from vaedeploy.graph.graph import Graph, load_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.numerics.maxima import measure_maxima
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.source import load_reference
from vaedeploy.testing.inflation import INFLATIONS, inflate
from vaedeploy.values.kinds import Part
from vaedeploy.verify.limits import bound_of

HALF = onnx.TensorProto.FLOAT16


def load(model: onnx.ModelProto) -> str:
    """What ONNX Runtime says of a graph that no CPU has the kernels for."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="ONNXRuntimeError") as refused:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return str(refused.value)


def fused(model: ir.Model, part: Part = "decoder", **options: Any) -> onnx.ModelProto:
    """The form in fp16, which is valid, and of which only kernels are missing here."""
    proto = ir.to_proto(rewrite_graph(Graph(model, part), "onnxruntime-cuda", "fp16", **options).graph.model)
    onnx.checker.check_model(proto, full_check=True)
    if {"NhwcConv", "GroupNorm"} & set(operators(proto)):
        assert "Failed to find kernel for com.microsoft." in load(proto)
    return proto


def types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of each value."""
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def assert_within_limits(new: onnx.ModelProto, plain: ir.Model | Path, x: np.ndarray) -> None:
    """The outputs of ``new`` in fp16 beside those of the float32 graph."""
    feed = {new.graph.input[0].name: x}
    expected = evaluator(ir.to_proto(plain) if isinstance(plain, ir.Model) else plain).run(None, feed)
    for value, found, wanted in zip(new.graph.output, evaluator(new).run(None, feed), expected, strict=True):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        error = np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64))
        assert error <= bound_of("fp16", "rel_l2"), value.name


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_traced_vae(tiny_graphs: Path, part: Part) -> None:
    plain = ir.load(tiny_graphs / f"{part}.onnx")
    new = fused(plain.clone(), part)
    assert not {"Conv", "InstanceNormalization", "Sigmoid", "Resize"} & set(operators(new))
    assert_within_limits(new, plain, draw(3, 4, 5, 7) if part == "decoder" else draw(3, 3, 20, 28).clip(-1, 1))


def test_an_encoder_of_bytes(tiny_vae: Any) -> None:
    """Its images are channels-last outside as well: no Transpose stands before the first convolution."""
    plain = trace_graph(tiny_vae, "encoder", image_input="uint8").model
    new = fused(plain.clone(), "encoder")
    first = operators(new).index("NhwcConv")
    assert "Transpose" not in operators(new)[:first]
    assert_within_limits(new, plain, np.random.default_rng(0).integers(0, 256, (2, 20, 28, 3)).astype(np.uint8))


def test_the_image_of_bytes_is_channels_last_already(tiny_graphs: Path) -> None:
    new = fused(ir.load(tiny_graphs / "decoder.onnx"))
    (image,) = [n for n in new.graph.node if "image_u8" in n.output]
    made_by = {output: n for n in new.graph.node for output in n.output}
    path = [image]
    while path[-1].op_type != "NhwcConv":
        path.append(made_by[path[-1].input[0]])
    assert "Transpose" not in [n.op_type for n in path]


PARTS: tuple[Part, ...] = ("encoder", "decoder")


def assert_fused_everywhere(new: onnx.ModelProto) -> None:
    assert operators(new).count("MultiHeadAttention") == 1
    assert not {"Conv", "InstanceNormalization", "GroupNormalization", "Resize", "Softmax"} & set(operators(new))


@pytest.mark.parametrize("part", PARTS)
def test_the_demo_vae(part: Part, demo_mse_bundle: Bundle) -> None:
    plain = load_graph(demo_mse_bundle.graph(part), part)
    x = draw(1, 16, 5, 7) if part == "decoder" else draw(1, 3, 40, 56).clip(-1, 1)
    new = fused(plain.model.clone(), part, maxima=measure_maxima(plain.model, [{plain.model.graph.inputs[0].name: x}]))
    assert_fused_everywhere(new)
    assert "Sigmoid" not in operators(new)
    assert_within_limits(new, demo_mse_bundle.graph(part), x)


@pytest.mark.full
@pytest.mark.parametrize("part", PARTS)
def test_full_size(part: Part, full_size_bundle: Bundle) -> None:
    plain = load_graph(full_size_bundle.graph(part), part)
    new = fused(plain.model.clone(), part)
    assert_fused_everywhere(new)
    x = draw(1, 4, 4, 6) if part == "decoder" else draw(1, 3, 32, 48).clip(-1, 1)
    assert_within_limits(new, full_size_bundle.graph(part), x)


@pytest.mark.slow
@pytest.mark.parametrize("part", [pytest.param("encoder", marks=pytest.mark.full), "decoder"])
def test_what_overflows_is_scaled_first(part: Part, small_vae: Path) -> None:
    """Weights for the same function that leave fp16's range: only with measured maxima are they within it."""
    reference = load_reference(small_vae)
    inflate(getattr(reference, part), *map(cycle, INFLATIONS["2^17 everywhere"]))
    plain = trace_graph(reference, part).model
    x = draw(1, 4, 5, 7) if part == "decoder" else draw(1, 3, 40, 56).clip(-1, 1)
    new = fused(plain.clone(), part, maxima=measure_maxima(plain, [{plain.graph.inputs[0].name: x}]))
    assert_fused_everywhere(new)
    assert_within_limits(new, plain, x)


@pytest.mark.parametrize(
    "opset",
    [17, pytest.param(18, marks=(pytest.mark.slow, pytest.mark.full)), pytest.param(21, marks=pytest.mark.slow)],
)
def test_decoders_of_diffusers(opset: int, tmp_path: Path) -> None:
    """As torch's two exporters write them, attention included."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = {"up_block_types": ("UpDecoderBlock2D",) * 2, "down_block_types": ("DownEncoderBlock2D",) * 2}
        sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
        decoder = Decoder(diffusers.AutoencoderKL(**blocks, **sizes)).eval()
    export_decoder(decoder, tmp_path / "plain.onnx", opset)
    plain = ShapeInferencePass(data_prop=True)(ir.load(tmp_path / "plain.onnx")).model
    new = fused(plain.clone())
    assert_fused_everywhere(new)
    assert_within_limits(new, tmp_path / "plain.onnx", draw(2, 4, 5, 7))


def test_scores_that_overflow_stay_in_float32() -> None:
    nodes = [
        node("Reshape", "x flat", "row"),
        node("Transpose", "row", "t", perm=[0, 2, 1]),
        *(node("MatMul", f"t w{i}", i) for i in "qkv"),
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "scores"),
        node("Softmax", "scores", "p"),
        node("MatMul", "p v", "a"),
        node("MatMul", "a wv", "y"),
    ]
    tensors = {"flat": np.array([0, 8, -1]), **{f"w{i}": draw(8, 8, seed=ord(i)) for i in "qkv"}}
    model = graph(nodes, tensors)
    names = {name: 1.0 for n in model.graph.node for name in n.output}
    assert attention_type(fused(ir.from_proto(model), maxima=names)) == HALF
    assert attention_type(fused(ir.from_proto(model), maxima={**names, "scores": 1e6})) == onnx.TensorProto.FLOAT


def attention_type(model: onnx.ModelProto) -> int:
    (attention,) = [n for n in model.graph.node if n.op_type == "MultiHeadAttention"]
    (found,) = {types(model)[name] for name in (*attention.input, *attention.output)}
    return found


def test_what_the_fused_operators_read() -> None:
    """Scale and bias of GroupNorm are float32, and everything else is float16."""
    nodes = [
        convolution("x", "c", "k"),
        node("Reshape", "c groups", "grouped"),
        node("InstanceNormalization", "grouped ones zeros", "normal"),
        node("Shape", "c", "size"),
        node("Reshape", "normal size", "back"),
        node("Mul", "back gamma", "scaled"),
        node("Add", "scaled beta", "n"),
        convolution("n", "y", "l"),
    ]
    tensors = {
        **weights("k"),
        **weights("l"),
        "groups": np.array([0, 2, -1]),
        "ones": np.ones(2, np.float32),
        "zeros": np.zeros(2, np.float32),
        "gamma": draw(8, 1, 1),
        "beta": draw(8, 1, 1),
    }
    new = fused(ir.from_proto(graph(nodes, tensors)))
    known = {**types(new), **{t.name: t.data_type for t in new.graph.initializer}}
    reads = {n.op_type: [known[name] for name in n.input] for n in new.graph.node}
    assert reads["NhwcConv"] == [HALF] * 3
    assert reads["GroupNorm"] == [HALF, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT]


def test_that_a_cpu_sees_what_is_wrong(tiny_graphs: Path) -> None:
    """Types and ranks that the operators do not take are told of before a missing kernel."""
    new = fused(ir.load(tiny_graphs / "decoder.onnx"))
    (norm, *_) = [n for n in new.graph.node if n.op_type == "GroupNorm"]
    (convolution, *_) = [n for n in new.graph.node if n.op_type == "NhwcConv"]
    kernel = next(t for t in new.graph.initializer if t.name == convolution.input[1])
    for name, wrong in ((kernel.name, norm.input[1]), (kernel.name, "latent")):
        broken = onnx.ModelProto.FromString(new.SerializeToString())
        for each in broken.graph.node:
            each.input[:] = [wrong if given == name else given for given in each.input]
        assert "Failed to find kernel" not in load(broken)


@pytest.mark.parametrize(
    "options", [{"precision": "fp32"}, {"precision": "bf16"}, {"precision": "fp16", "rules": False}], ids=str
)
def test_other_precisions_and_no_rules(tiny_graphs: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"one of fused operators in fp16; for other precisions, the form for onnxrun"):
        rewrite_graph(load_graph(tiny_graphs / "decoder.onnx", "decoder"), "onnxruntime-cuda", **options)
