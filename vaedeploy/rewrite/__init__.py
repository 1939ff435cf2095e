"""Exact rewrites, Graph -> Graph. Each rule is a module whose docstring states the rule's equation.

May import ``graph`` and what is below it; knows nothing of the other stages.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from vaedeploy.errors import InputError
from vaedeploy.graph.graph import Graph
from vaedeploy.rewrite.attention import chunk_attention
from vaedeploy.rewrite.cuda import fuse_for_cuda
from vaedeploy.rewrite.normalization import split_means
from vaedeploy.rewrite.outcome import Outcome, Refusal
from vaedeploy.rewrite.padding import fold_padding
from vaedeploy.rewrite.precision import Underflow, lower_precision
from vaedeploy.rewrite.rescale import rescale
from vaedeploy.rewrite.unrolled import unroll_attention
from vaedeploy.rewrite.upsample import UpsampleForm, fold_upsampling
from vaedeploy.system.interrupts import stop_if_interrupted
from vaedeploy.values.kinds import Precision

if TYPE_CHECKING:
    from vaedeploy.values.kinds import Target


__all__ = ["Outcome", "Refusal", "Rewritten", "Underflow", "names_in", "rewrite_graph"]

UPSAMPLING: dict[Target, UpsampleForm] = {
    "onnxruntime": "convolutions",
    "openvino": "transposed",
    "tensorrt": "transposed",
}
"""Target -> the form in which upsampling is folded: the faster one for ONNX Runtime on the CPU and for OpenVINO, and
the one that needs less scratch memory in TensorRT-RTX.
"""

NOT_IN_BFLOAT16 = "TensorRT has no transposed convolution in bfloat16, and the other form takes twice the memory"


@dataclass(frozen=True)
class Rewritten:
    """A graph after the rules.

    outcomes: what each rule did, in the order in which they ran. underflows: the weights in which rounding to the lower
    precision made numbers zero or subnormal.
    """

    graph: Graph
    outcomes: tuple[Outcome, ...]
    underflows: tuple[Underflow, ...] = ()


def rewrite_graph(
    graph: Graph,
    target: Target = "onnxruntime",
    precision: Precision = "fp32",
    *,
    maxima: Mapping[str, float] | None = None,
    rules: bool = True,
    keep_fp32: Collection[str] = (),
    largest: Sequence[Mapping[str, int]] = (),
) -> Rewritten:
    """The form of a float32 ``graph`` that ``target`` runs best, in ``precision``. ``graph`` is not changed.

    maxima: tensor name -> largest magnitude (see ``calibrate``), for fp16; without them nothing is rescaled. rules:
    False to lower the precision and apply no other rule. keep_fp32: names of nodes that stay in float32, with all nodes
    that the rules make of them; see ``names_in``. largest: for the target tensorrt, the largest sizes at which an
    engine will run, each symbolic dimension -> size: attention that is too large there is computed in blocks.

    Raises InputError where the graph cannot be lowered, for the reasons that ``lower_precision`` lists. The forms for
    onnxruntime-cuda and openvino are made by rules: InputError also for these targets without rules, or in a precision
    other than fp16 and fp32 respectively.
    """
    if target == "onnxruntime-cuda" and (precision != "fp16" or not rules):
        raise InputError(
            "the form for ONNX Runtime's CUDA provider is one of fused operators in fp16; for other precisions, the "
            "form for onnxruntime runs on that provider too"
        )
    if target == "openvino" and (precision != "fp32" or not rules):
        raise InputError(
            "the form for OpenVINO is one of rewrites in fp32: OpenVINO itself lowers it to the precision that it is "
            "asked for"
        )
    stop_if_interrupted()
    model = graph.model.clone()
    outcomes: list[Outcome] = []
    kept: frozenset[str] = frozenset()
    underflows: tuple[Underflow, ...] = ()
    if rules and precision == "fp16" and maxima is not None:
        # This rule is first: the maxima are those of the original graph's tensors.
        scaled = rescale(model, maxima)
        outcomes, kept = [scaled.outcome], scaled.keep_fp32
    if rules:
        outcomes.append(fold_padding(model))
        if target == "onnxruntime-cuda":
            names = {*kept, *keep_fp32}
            outcomes += fuse_for_cuda(model, names)
            kept = frozenset(names)
        elif target == "tensorrt" and (precision == "bf16" or _has_bfloat16(model)):
            outcomes.append(Outcome("fold_upsampling", 0, (Refusal("", NOT_IN_BFLOAT16),)))
        else:
            outcomes.append(fold_upsampling(model, UPSAMPLING[target]))
        if target in ("onnxruntime", "openvino"):
            outcomes.append(split_means(model))
    if precision == "bf16" and target == "tensorrt":
        kept |= _named_transposed_convolutions(model)
    if precision != "fp32":
        kept = _present(model, kept) | _made_of(model, frozenset(keep_fp32))
        lowering = lower_precision(model, precision, keep_fp32=kept)
        outcomes, underflows = [*outcomes, lowering.outcome], lowering.underflows
    if rules and target == "onnxruntime":
        # This rule is last: it moves nodes into a loop, where the other rules do not look. OpenVINO computes attention
        # in blocks by itself, and crashes when a graph with a loop gives memory back in bfloat16 (2026.4).
        outcomes.append(chunk_attention(model))
    if rules and target == "tensorrt" and largest:
        outcomes.append(unroll_attention(model, largest))
    _remove_unused(model)
    return Rewritten(Graph(model, graph.part), tuple(outcomes), underflows)


def _named_transposed_convolutions(model: ir.Model) -> frozenset[str]:
    """Names of the original graph's transposed convolutions; those without a name get one.

    TensorRT does not have them in bfloat16 either.
    """
    nodes = [node for node in model.graph if node.op_type == "ConvTranspose"]
    for index, node in enumerate(nodes):
        node.name = node.name or f"transposed_convolution_{index}"
    return frozenset(str(node.name) for node in nodes)


def _has_bfloat16(model: ir.Model) -> bool:
    return any(value.dtype == ir.DataType.BFLOAT16 for value in model.graph.initializers.values())


def _present(model: ir.Model, names: frozenset[str]) -> frozenset[str]:
    """The ``names`` of nodes that the rules have not removed."""
    return names & {str(node.name) for node in model.graph}


def _made_of(model: ir.Model, names: frozenset[str]) -> frozenset[str]:
    """The nodes of these names, and those that the rules made of them."""
    return frozenset(str(node.name) for node in model.graph if not names.isdisjoint(_origins(str(node.name))))


def names_in(model: ir.Model, names: Collection[str]) -> frozenset[str]:
    """Those of ``names`` that are names of nodes of ``model``, or of nodes that the rules make of one: ``conv_out``
    becomes ``conv_out.interleaved.1`` and others.
    """
    known = {str(node.name) for node in model.graph}
    return frozenset(name for name in names if not known.isdisjoint(_origins(name)))


def _origins(name: str) -> list[str]:
    """The name of a node, and those of the nodes from which the rules made it."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _remove_unused(model: ir.Model) -> None:
    """Remove nodes that no output needs any more, and weights that only they read."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
