"""Attention over blocks of queries gives what the whole matrix gives, in less memory, and keeps off anything else."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from attentions import HEADS, ONE_HEAD, PLAIN, attention, draw
from examples import at_most
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from vaedeploy.rewrite.attention import SCORES_BYTES, chunk_attention


def chunked(model: onnx.ModelProto, scores_bytes: int) -> onnx.ModelProto:
    new = ir.from_proto(model)
    outcome = chunk_attention(new, scores_bytes=scores_bytes)
    assert (outcome.rule, outcome.matches, outcome.refusals) == ("chunk_attention", 1, ())
    proto = ir.to_proto(new)
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in proto.graph.node].count("Loop") == 1
    assert "Softmax" not in {node.op_type for node in proto.graph.node}
    return proto


def run(model: onnx.ModelProto | Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


FORMS = {
    "plain": PLAIN,
    "scaled before": "c = Constant<value = double[1] {0.3}>() t = Mul(q, c) s = MatMul(t, k)"
    " p = Softmax<axis=-1>(s) y = MatMul(p, v)",
    "scaled after": "c = Constant<value = double {0.3}>() t = MatMul(q, k) s = Mul(c, t)"
    " p = Softmax<axis=3>(s) y = MatMul(p, v)",
    "divided, with casts": "c = Constant<value = double {3.3}>() t = MatMul(q, k) d = Div(t, c) s = Cast<to=11>(d)"
    " e = Softmax(s) p = Cast<to=11>(e) y = MatMul(p, v)",
}


@at_most(30)
@given(
    form=st.sampled_from(list(FORMS)),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 17),
    keys=st.integers(1, 13),
    scores=st.integers(1, 400),
    seed=st.integers(0, 2**31),
)
def test_equation_holds_in_float64(
    form: str, batch: int, heads: int, queries: int, keys: int, scores: int, seed: int
) -> None:
    model = attention(FORMS[form])
    x = draw(seed, q=(batch, heads, queries, 8), k=(batch, heads, 8, keys), v=(batch, heads, keys, 6))
    expected = ReferenceEvaluator(model).run(None, x)[0]
    found = ReferenceEvaluator(chunked(model, 8 * scores)).run(None, x)[0]
    # A row's sums have the same terms; the library may order them by how many rows there are.
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


@at_most(30)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 70),
    keys=st.integers(1, 50),
    scores=st.integers(1, 2000),
    seed=st.integers(0, 2**31),
)
def test_equation_holds_in_onnxruntime(batch: int, queries: int, keys: int, scores: int, seed: int) -> None:
    model = attention(shapes=ONE_HEAD, type="float")
    x = draw(seed, q=(batch, queries, 8), k=(batch, 8, keys), v=(batch, keys, 6), dtype=np.float32)
    # Results are means of numbers around 1; float32 sums of at most 50 terms, which may be in another order.
    np.testing.assert_allclose(run(chunked(model, 4 * scores), x), run(model, x), rtol=0, atol=2e-6)


def test_every_row_has_its_own_digits() -> None:
    """Where the runtime multiplies as told, a block's rows are the whole product's rows, bit for bit."""
    model = attention(shapes=ONE_HEAD, type="float")
    x = draw(0, q=(1, 96, 8), k=(1, 8, 200), v=(1, 200, 6), dtype=np.float32)
    np.testing.assert_array_equal(run(chunked(model, 4 * 200 * 32), x), run(model, x))


SHAPES = {
    "keys shared by heads": (
        HEADS | {"k": "b,1,8,m", "v": "b,1,m,6"},
        (2, 3, 9, 8),
        (2, 1, 8, 5),
        (2, 1, 5, 6),
    ),
    "no batch": ({"q": "n,8", "k": "8,m", "v": "m,6", "y": "n,6"}, (9, 8), (8, 5), (5, 6)),
    "keys without a batch": (ONE_HEAD | {"k": "8,m", "v": "m,6"}, (2, 9, 8), (8, 5), (5, 6)),
    "an empty batch": (ONE_HEAD, (0, 9, 8), (0, 8, 5), (0, 5, 6)),
    "sizes that are known": ({"q": "2,9,8", "k": "2,8,5", "v": "2,5,6", "y": "2,9,6"}, (2, 9, 8), (2, 8, 5), (2, 5, 6)),
}


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize(("shapes", "q", "k", "v"), SHAPES.values(), ids=SHAPES)
def test_shapes(shapes: dict[str, str], q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], opset: int) -> None:
    model = attention(shapes=shapes, type="float", opset=opset)
    x = draw(0, q=q, k=k, v=v, dtype=np.float32)
    found, expected = run(chunked(model, 4 * 20), x), run(model, x)
    assert found.shape == expected.shape
    # As above.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_queries_that_are_their_own_keys() -> None:
    """The block stands for the value on the product's left alone."""
    model = attention("s = MatMul(q, q) p = Softmax(s) y = MatMul(p, v)", shapes=ONE_HEAD | {"q": "b,8,8"})
    x = draw(0, q=(3, 8, 8), k=(3, 8, 8), v=(3, 8, 6))
    expected = ReferenceEvaluator(model).run(None, x)[0]
    found = ReferenceEvaluator(chunked(model, 200)).run(None, x)[0]
    # As in the property.
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


MASK = ", double[b,h,n,m] mask"
REFUSALS = {
    "a mask or a bias is added to the scores": {
        "nodes": "t = MatMul(q, k) s = Add(t, mask) p = Softmax(s) y = MatMul(p, v)",
        "more": MASK,
    },
    "the softmax's input is not a product of queries and keys": {
        "nodes": "p = Softmax(mask) y = MatMul(p, v)",
        "more": MASK,
    },
    "the softmax's input comes from Mul, not from a product of queries and keys": {
        "nodes": "t = MatMul(q, k) s = Mul(t, mask) p = Softmax(s) y = MatMul(p, v)",
        "more": MASK,
    },
    "the softmax's input comes from other::MatMul, not from a product of queries and keys": {
        "nodes": "s = other.MatMul(q, k) p = Softmax(s) y = MatMul(p, v)",
    },
    "the scores are read by something else too": {"outputs": ", double[b,h,n,m] s"},
    "the softmax's output is not read only by one product with values": {"outputs": ", double[b,h,n,m] p"},
    "the softmax's output goes to Dropout, not to a product with values from its left": {
        "nodes": "s = MatMul(q, k) p = Softmax(s) d = Dropout(p) y = MatMul(d, v)",
    },
    "the softmax's output goes to MatMul, not to a product with values from its left": {
        "nodes": "s = MatMul(q, k) p = Softmax(s) y = MatMul(v, p)",
        "shapes": HEADS | {"v": "b,h,6,n", "y": "b,h,6,m"},
    },
    "the softmax's output is read in a subgraph": {
        "nodes": "s = MatMul(q, k) p = Softmax(s) y = If(flag) <"
        "then_branch = yes () => (double[b,h,n,6] a) { a = MatMul(p, v) },"
        "else_branch = no () => (double[b,h,n,6] c) { c = Identity(v) }>",
        "more": ", bool flag",
    },
    "the softmax is not along the keys": {"nodes": "s = MatMul(q, k) p = Softmax<axis=-2>(s) y = MatMul(p, v)"},
    "queries, keys or values are a vector, not a matrix": {"shapes": HEADS | {"v": "m", "y": "b,h,n"}},
    "the rank or the type of queries, keys or values is not known; infer shapes first": {"inferred": False},
    "opset 14 is older than 15": {"opset": 14},
    "its scores take 2400 bytes at any time, and 2400 are allowed": {
        "shapes": {"q": "2,5,10,8", "k": "2,5,8,3", "v": "2,5,3,6", "y": "2,5,10,6"},
    },
}


@pytest.mark.parametrize(("reason", "options"), REFUSALS.items(), ids=REFUSALS)
def test_refusals(reason: str, options: dict[str, Any]) -> None:
    model = ir.from_proto(attention(**options))
    before = ir.to_proto(model).SerializeToString()
    outcome = chunk_attention(model, scores_bytes=2400)
    assert [(refusal.node, refusal.reason) for refusal in outcome.refusals] == [("p", reason)]
    assert outcome.matches == 0
    assert ir.to_proto(model).SerializeToString() == before


def test_a_block_has_some_memory() -> None:
    with pytest.raises(ValueError, match="scores_bytes is 0; it must be at least 1"):
        chunk_attention(ir.from_proto(attention()), scores_bytes=0)


def test_names_and_shapes_stay() -> None:
    """What reads the result knows as much of it as before; a second time, and a copy, change nothing."""
    model = ir.from_proto(attention(f"{PLAIN} z = Relu(y)", outputs=", double[b,h,n,6] z"))
    assert chunk_attention(model).matches == 1
    assert chunk_attention(model).matches == 0
    (y,) = [node.inputs[0] for node in model.graph if node.op_type == "Relu"]
    assert (y.name, str(y.shape), y.dtype) == ("y", "[b,h,n,6]", ir.DataType.DOUBLE)
    assert [str(value.shape) for value in model.graph.outputs] == ["[b,h,n,6]"] * 2
    copy = model.clone()
    RemoveUnusedNodesPass()(copy)
    assert ir.to_proto(copy).SerializeToString() == ir.to_proto(model).SerializeToString()


MEMORY = """
import sys
import numpy, onnxruntime

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

options = onnxruntime.SessionOptions()
options.enable_cpu_mem_arena = False
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
tokens = int(sys.argv[2])
x = {"q": (1, tokens, 8), "k": (1, 8, tokens), "v": (1, tokens, 6)}
x = {name: numpy.ones(shape, numpy.float32) for name, shape in x.items()}
before = peak()
session.run(None, x)
print(peak() - before)
"""
"""Prints by how much a run raises the process's peak, in bytes; getrusage would count its parent's peak too."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_scores_are_never_whole(tmp_path: Path) -> None:
    model = attention(shapes=ONE_HEAD, type="float")
    onnx.save(model, tmp_path / "plain.onnx")
    onnx.save(chunked(model, SCORES_BYTES), tmp_path / "blocks.onnx")
    peaks = {}
    for name in ("plain", "blocks"):
        command = [sys.executable, "-c", MEMORY, str(tmp_path / f"{name}.onnx"), "6000"]
        peaks[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # 6,000 x 6,000 float32 scores are 144 MB, those of each of three blocks 48 MB; twice that would be a second copy.
    assert peaks["blocks"] < 70e6 < 140e6 < peaks["plain"]


def export(vae: torch.nn.Module, path: Path, opset: int) -> None:
    """A whole VAE, image to image, by torch's dynamo exporter, or at opset 17 by its TorchScript exporter."""
    example = torch.zeros(2, 3, 10, 12)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            if opset > 17:
                dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
                torch.onnx.export(vae, (example,), path, dynamo=True, opset_version=opset, dynamic_shapes=(dynamic,))
            else:
                axes = {"input": {0: "batch", 2: "height", 3: "width"}}
                torch.onnx.export(
                    vae, (example,), path, dynamo=False, opset_version=opset, input_names=["input"], dynamic_axes=axes
                )
    finally:
        logging.disable(logging.NOTSET)


class Image(torch.nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.vae(image).sample
        return result


@pytest.mark.parametrize(
    "opset",
    [
        17,
        *(pytest.param(opset, marks=pytest.mark.slow) for opset in (18, 21)),
        *(pytest.param(opset, marks=(pytest.mark.slow, pytest.mark.full)) for opset in (19, 20)),
    ],
)
def test_both_attentions_of_diffusers(opset: int, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1).eval()
    export(Image(vae), tmp_path / "plain.onnx", opset)
    model = ShapeInferencePass()(ir.load(tmp_path / "plain.onnx")).model
    outcome = chunk_attention(model, scores_bytes=4 * 1000)
    assert (outcome.matches, outcome.refusals) == (2, ())
    ir.save(model, tmp_path / "blocks.onnx")
    onnx.checker.check_model(tmp_path / "blocks.onnx", full_check=True)
    image = draw(0, image=(2, 3, 7, 13), dtype=np.float32)["image"]
    name = model.graph.inputs[0].name
    found, expected = (run(tmp_path / f"{form}.onnx", {name: image}) for form in ("blocks", "plain"))
    # float32: the runtime multiplies the scale into the scores of the plain form only.
    assert np.linalg.norm(found - expected) < 3e-6 * np.linalg.norm(expected)
