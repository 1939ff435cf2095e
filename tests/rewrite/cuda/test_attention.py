"""The fused attention is the one that was written in pieces, and nothing else is taken for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from attentions import HEADS, ONE_HEAD, PLAIN, attention
from cuda_operators import evaluator
from fused import assert_same, draw, operators, refusals, rewritten
from hypothesis import given, settings
from hypothesis import strategies as st

from vaedeploy.rewrite.cuda.attention import fuse_attention

TWO_HEADS = {name: shape.replace("h", "2") for name, shape in HEADS.items()}

ROUNDING = 2e-6
"""Of the largest number: means of numbers around 1, by sums in float32 of at most 17 terms in another order."""


def fused(model: onnx.ModelProto, keep: set[str] | None = None) -> onnx.ModelProto:
    new, (outcome,) = rewritten(model, fuse_attention, keep=keep)
    assert (outcome.rule, outcome.matches, outcome.refusals) == ("fuse_attention", 1, ())
    assert not {"MatMul", "Softmax"} & set(operators(new))
    return new


def attributes(model: onnx.ModelProto) -> dict[str, Any]:
    (found,) = [n for n in model.graph.node if n.op_type == "MultiHeadAttention"]
    return {a.name: onnx.helper.get_attribute_value(a) for a in found.attribute}


FORMS = {
    "plain": (PLAIN, 1.0),
    "scaled before": (
        "c = Constant<value = float[1] {0.3}>() t = Mul(q, c) s = MatMul(t, k) p = Softmax(s) y = MatMul(p, v)",
        1.0,
    ),
    "scaled after": (
        "c = Constant<value = float {0.3}>() t = MatMul(q, k) s = Mul(c, t) p = Softmax<axis=3>(s) y = MatMul(p, v)",
        0.3,
    ),
    "divided, with Casts": (
        "c = Constant<value = float {3.2}>() t = MatMul(q, k) d = Div(t, c) s = Cast<to=1>(d) e = Softmax(s)"
        " p = Cast<to=1>(e) y = MatMul(p, v)",
        0.3125,
    ),
    "scaled twice": (
        "c = Constant<value = float {3.2}>() t = MatMul(q, k) d = Div(t, c) s = Mul(d, c) p = Softmax(s)"
        " y = MatMul(p, v)",
        1.0,
    ),
}


@settings(max_examples=30)
@given(
    form=st.sampled_from(list(FORMS)),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 17),
    keys=st.integers(1, 13),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_same(form: str, batch: int, heads: int, queries: int, keys: int, seed: int) -> None:
    nodes, scale = FORMS[form]
    model = attention(nodes, shapes={n: s.replace("h", str(heads)) for n, s in HEADS.items()}, type="float")
    new = fused(model)
    assert attributes(new) == {"num_heads": heads, "scale": np.float32(scale)}
    sizes = {"q": (batch, heads, queries, 8), "k": (batch, heads, 8, keys), "v": (batch, heads, keys, 6)}
    x = {name: draw(*size, seed=seed + ord(name)) for name, size in sizes.items()}
    assert_same(new, model, x, ROUNDING)


@pytest.mark.parametrize("opset", [15, 18, 19, 20, 21])
def test_one_head(opset: int) -> None:
    model = attention(shapes=ONE_HEAD, type="float", opset=opset)
    new = fused(model)
    assert operators(new) == ["Transpose", "MultiHeadAttention"]
    assert_same(new, model, {"q": draw(2, 9, 8), "k": draw(2, 8, 5), "v": draw(2, 5, 6)}, ROUNDING)


def test_onnx_runtime_computes_the_same() -> None:
    """Its CPU provider has this one of the operators too, in float32."""
    model = attention(FORMS["scaled after"][0], shapes=TWO_HEADS, type="float")
    x = {"q": draw(3, 2, 9, 8), "k": draw(3, 2, 8, 5), "v": draw(3, 2, 5, 6)}
    session = onnxruntime.InferenceSession(fused(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = evaluator(model).run(None, x)
    np.testing.assert_allclose(session.run(None, x)[0], expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


def test_keys_whose_sizes_are_computed() -> None:
    """As torch's exporter writes scaled_dot_product_attention: the shape of the keys is in no annotation."""
    nodes = (
        "all = Shape(w) first = Shape<end=2>(w) rows = Shape<start=2, end=3>(w) columns = Shape<start=3>(w)"
        " minus = Constant<value = int64[1] {-1}>() flat = Concat<axis=0>(minus, rows, columns)"
        " r = Reshape(w, flat) u = Transpose<perm=[0, 2, 1]>(r) back = Concat<axis=0>(first, columns, rows)"
        " keys = Reshape(u, back) s = MatMul(q, keys) p = Softmax(s) y = MatMul(p, v)"
    )
    model = attention(nodes, shapes=TWO_HEADS, type="float", more=", float[b,2,m,8] w")
    x = {"q": draw(3, 2, 9, 8), "k": draw(3, 2, 8, 5), "v": draw(3, 2, 5, 6), "w": draw(3, 2, 5, 8)}
    assert_same(fused(model), model, x, ROUNDING)


SHARED = "queries, keys and values are not known to have the same batch and heads"
RANKS = "queries, keys and values are not known to be all (B, N, D) or all (B, H, N, D)"
REFUSALS: list[tuple[str, dict[str, Any]]] = [
    (SHARED, {"inferred": False, "shapes": {name: shape.replace("b", "?") for name, shape in TWO_HEADS.items()}}),
    (SHARED, {"shapes": TWO_HEADS | {"k": "b,1,8,m", "v": "b,1,m,6"}}),
    (SHARED, {"shapes": TWO_HEADS | {"v": "b,1,m,6"}}),
    (SHARED, {"shapes": ONE_HEAD | {"k": "1,8,m", "v": "1,m,6"}}),
    (SHARED, {"shapes": ONE_HEAD | {"v": "other,m,6"}}),
    (RANKS, {"shapes": ONE_HEAD | {"k": "8,m", "v": "m,6"}}),
    (RANKS, {"shapes": {"q": "n,8", "k": "8,m", "v": "m,6", "y": "n,6"}}),
    (RANKS, {"shapes": {name: f"2,{shape}" for name, shape in HEADS.items()}}),
    (
        RANKS,
        {
            "nodes": "c = Constant<value = float[1,1,1,1] {0.3}>() t = MatMul(q, k) s = Mul(t, c) p = Softmax(s)"
            " y = MatMul(p, v)",
            "shapes": ONE_HEAD | {"y": "1,b,n,6"},
        },
    ),
    ("the number of heads is not fixed", {}),
    (
        "the softmax is not along the keys",
        {"nodes": "s = MatMul(q, k) p = Softmax<axis=2>(s) y = MatMul(p, v)", "shapes": TWO_HEADS},
    ),
    (
        "a mask or a bias is added to the scores",
        {
            "nodes": "t = MatMul(q, k) s = Add(t, mask) p = Softmax(s) y = MatMul(p, v)",
            "more": ", float[b,2,n,m] mask",
            "shapes": TWO_HEADS,
        },
    ),
    ("the scores are read by something else too", {"outputs": ", float[b,h,n,m] s"}),
]


@pytest.mark.parametrize(("reason", "options"), REFUSALS)
def test_refusals(reason: str, options: dict[str, Any]) -> None:
    model = attention(**{"type": "float", **options})
    assert [(r.node, r.reason) for r in refusals(model, fuse_attention)] == [("p", reason)]


def test_a_factor_that_a_caller_may_give() -> None:
    """An initializer that is an input too is a default."""
    nodes = "t = MatMul(q, k) s = Mul(t, c) p = Softmax(s) y = MatMul(p, v)"
    model = attention(nodes, shapes=ONE_HEAD, type="float", more=", float[1] c")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([0.3]), "c"))
    (refusal,) = refusals(model, fuse_attention)
    assert refusal.reason == "the factor of the scores is not constant"


@pytest.mark.parametrize("kept", ["s", "p", "y"])
@pytest.mark.parametrize("shapes", [ONE_HEAD, TWO_HEADS], ids=["one head", "two heads"])
def test_one_kept_node_keeps_the_fused_one(kept: str, shapes: dict[str, str]) -> None:
    keep = {kept}
    new = fused(attention(shapes=shapes, type="float"), keep)
    assert [n.op_type for n in new.graph.node if n.name in keep] == ["MultiHeadAttention"]
    keep = {"another"}
    fused(attention(shapes=shapes, type="float"), keep)
    assert keep == {"another"}


def test_two_of_them_in_a_row() -> None:
    nodes = f"{PLAIN} s2 = MatMul(y, k2) p2 = Softmax(s2) z = MatMul(p2, v)"
    more = ", float[b,6,m] k2"
    model = attention(nodes, shapes=ONE_HEAD, type="float", more=more, outputs=", float[b,n,6] z")
    new, (outcome,) = rewritten(model, fuse_attention)
    assert outcome.matches == 2
    x = {"q": draw(2, 9, 8), "k": draw(2, 8, 5), "v": draw(2, 5, 6), "k2": draw(2, 6, 5)}
    assert_same(new, model, x, ROUNDING)
