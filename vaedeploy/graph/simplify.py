"""Simplifies a traced graph as the optimiser of torch's exporter does, without changing a number of the model.

``torch.onnx.export`` ends with onnxscript's optimiser. Its rules for ``x + 0``, ``x - 0``, ``x * 1`` and ``x / 1`` take
a constant for 0 up to 1e-8, and for 1 up to a relative 1e-5. So they drop the 1e-15 that keeps a denominator from being
0, and the graph gives NaN where PyTorch gives 0. Here these rules require exactly 0 and 1. The rest is as in that
optimiser, through onnxscript's public names.

Seen in onnxscript 0.5.4, 0.6.2 and 0.7.2, with torch 2.13.0: the tolerances are ``Constant``'s in
onnxscript/rewriter/_pattern_ir.py, the rules are in rules/common/_no_op.py. Once the oldest onnxscript that
pyproject.toml allows compares exactly, this module and ``optimize=False`` in ``trace`` can go. A test in
tests/graph/test_simplify.py fails with the first version that does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import RewritePass, RewriteRule, RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

ROUNDS = 2
"""How often constants are folded and rules applied, as in onnxscript's optimiser: each may give the other work."""

UPSTREAM = (
    "dropout_zero_rule",
    "dropout_inference_rule",
    "two_reshapes_matmul_reshape_rule",
    "one_reshape_matmul_reshape_rule",
    "cast_constant_of_shape_rule",
    "cast_constant_of_shape_without_value_rule",
    "collapse_slice_rule",
    "collapse_slice2_rule",
    "min_min_rule",
    "max_max_rule",
    "min_max_rule",
    "max_min_rule",
    "successive_clip_relu_rule",
    "successive_relu_clip_rule",
    "successive_relu_rule",
    "successive_clip_rule",
    "cast_cast_rule",
    "no_op_cast_rule",
    "no_op_expand_rule",
    "flatten_to_reshape_rule",
    "reshape_reshape_rule",
    "slice_split_rule",
    "no_op_transpose_rule",
    "transpose_transpose_rule",
    "unsqueeze_unsqueeze_rule",
    "squeeze_reshape_1d_rule",
    "no_op_dynamic_scatter_nd_rule",
    "no_op_static_scatter_nd_rule",
    "normalize_pad_format_conv_rule",
    "fuse_pad_into_conv_rule",
    "fuse_batchnorm_into_conv_rule",
    "fuse_batchnorm_into_conv_transpose_rule",
    "fuse_batchnorm_into_gemm_rule",
)
"""onnxscript's rules that change no number, in its optimiser's order. Those that another version lacks are left out:
the graph is then less simple, but no less right. A test says which are missing.
"""


def simplify(model: ir.Model) -> None:
    """Fold constants and apply rules that change no number, in place. Names of inputs and outputs stay."""
    passes.InlinePass()(model)
    tidy = ir.passes.Sequential(
        RewritePass(RULES),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
    )
    for _ in range(ROUNDS):
        folded = fold_constants(model, onnx_shape_inference=True).modified
        if not (tidy(model).modified or folded):
            break
    ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)


def _exactly(number: int, pattern: Callable[[Any, Any, Any], Any]) -> RewriteRule:
    """The rule ``pattern(x, c) = x`` for a scalar ``c`` that is ``number``."""

    def is_exact(_context: Any, c: ir.Value, **_: Any) -> bool:
        tensor = c.const_value
        return tensor is not None and tensor.shape.rank() == 0 and tensor.numpy().item() == number

    return RewriteRule(pattern, lambda op, x, **_: op.Identity(x), is_exact)


RULES = RewriteRuleSet(
    [
        *_exactly(1, lambda op, x, c: op.Mul(x, c)).commute(),
        *_exactly(0, lambda op, x, c: op.Add(x, c)).commute(),
        _exactly(0, lambda op, x, c: op.Sub(x, c)),
        _exactly(1, lambda op, x, c: op.Div(x, c)),
        *(getattr(rules, name) for name in UPSTREAM if hasattr(rules, name)),
    ]
)
"""What ``simplify`` applies."""
