"""Attention in a fixed number of blocks gives what the whole matrix gives, and is left alone where it is small."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from attentions import HEADS, ONE_HEAD, attention, draw
from examples import at_most
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from vaedeploy.graph.graph import Graph, content_sha256
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.rewrite.unrolled import unroll_attention

CASTS = (
    "c = Constant<value = double {3.3}>() t = MatMul(q, k) d = Div(t, c) s = Cast<to=11>(d)"
    " e = Softmax(s) p = Cast<to=11>(e) y = MatMul(p, v)"
)


def unrolled(model: onnx.ModelProto, scores_bytes: int, **sizes: int) -> onnx.ModelProto:
    new = ir.from_proto(model)
    outcome = unroll_attention(new, [sizes], large_bytes=scores_bytes, block_bytes=scores_bytes)
    assert (outcome.rule, outcome.matches, outcome.refusals) == ("unroll_attention", 1, ())
    proto = ir.to_proto(new)
    onnx.checker.check_model(proto, full_check=True)
    return proto


@at_most(30)
@given(
    blocks=st.integers(2, 9),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 40),
    keys=st.integers(1, 13),
    seed=st.integers(0, 2**31),
)
def test_equation_holds_in_float64(blocks: int, batch: int, heads: int, queries: int, keys: int, seed: int) -> None:
    """At every size, also where there are fewer queries than blocks."""
    model = attention(CASTS)
    x = draw(seed, q=(batch, heads, queries, 8), k=(batch, heads, 8, keys), v=(batch, heads, keys, 6))
    expected = ReferenceEvaluator(model).run(None, x)[0]
    changed = unrolled(model, 8 * 100 * 100 // blocks, b=1, h=1, n=100, m=100)
    assert [node.op_type for node in changed.graph.node].count("Softmax") in (blocks, blocks + 1)
    found = ReferenceEvaluator(changed).run(None, x)[0]
    # A row's sums have the same terms; the library may order them by how many rows there are.
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("shapes", "given_shapes"),
    [
        (ONE_HEAD, {"q": (2, 9, 8), "k": (2, 8, 5), "v": (2, 5, 6)}),
        ({"q": "n,8", "k": "8,m", "v": "m,6", "y": "n,6"}, {"q": (9, 8), "k": (8, 5), "v": (5, 6)}),
    ],
    ids=["one head", "no batch"],
)
def test_ranks(shapes: dict[str, str], given_shapes: dict[str, tuple[int, ...]]) -> None:
    model = attention(shapes=shapes)
    sizes = {"n": 9, "m": 5} | ({"b": 2} if "b" in shapes["q"] else {})
    x = {name: np.random.default_rng(0).normal(0, 1, shape) for name, shape in given_shapes.items()}
    found = ReferenceEvaluator(unrolled(model, 80, **sizes)).run(None, x)[0]
    np.testing.assert_allclose(found, ReferenceEvaluator(model).run(None, x)[0], rtol=1e-13, atol=1e-13)


def test_an_engine_s_graph_follows_its_largest_size() -> None:
    """Where attention is large, profiles of other largest sizes have other graphs, and so other identities."""
    model = ir.from_proto(attention(shapes=ONE_HEAD))
    graph = Graph(model, "decoder")
    digests = {}
    for tokens in (4096, 16384, 32768, 65536):
        largest = [{"b": 1, "n": tokens, "m": tokens}]
        rewritten = rewrite_graph(graph, "tensorrt", largest=largest)
        digests[tokens] = content_sha256(rewritten.graph)
        softmaxes = [node for node in rewritten.graph.model.graph if node.op_type == "Softmax"]
        assert len(softmaxes) == (1 if tokens < 32768 else 8 * tokens**2 // 2**29)  # float64
    assert digests[4096] == digests[16384] == content_sha256(rewrite_graph(graph, "tensorrt").graph)
    assert len(set(digests.values())) == 3


def test_small_scores_are_left_alone() -> None:
    model = ir.from_proto(attention())
    before = ir.to_proto(model).SerializeToString()
    outcome = unroll_attention(
        model, [{"b": 1, "h": 1, "n": 4, "m": 4}, {"b": 1, "h": 2, "n": 9, "m": 5}], large_bytes=720
    )
    assert [refusal.reason for refusal in outcome.refusals] == [
        "its scores take 720 bytes at most, and 720 are allowed"
    ]
    assert ir.to_proto(model).SerializeToString() == before


def test_a_mask_is_refused() -> None:
    nodes = "t = MatMul(q, k) s = Add(t, mask) p = Softmax(s) y = MatMul(p, v)"
    model = ir.from_proto(attention(nodes, shapes=HEADS, more=", double[b,h,n,m] mask"))
    outcome = unroll_attention(model, [{"b": 1, "h": 1, "n": 9, "m": 9}], large_bytes=8)
    assert [refusal.reason for refusal in outcome.refusals] == ["a mask or a bias is added to the scores"]
