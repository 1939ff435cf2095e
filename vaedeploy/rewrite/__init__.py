"""Exact rewrites: Graph -> Graph, one rule a file, its equation in its docstring."""

from __future__ import annotations

import onnx_ir as ir

from vaedeploy.graph import Graph
from vaedeploy.rewrite.normalization import two_stage_normalization

__all__ = ["rewrite_graph"]


def rewrite_graph(graph: Graph) -> Graph:
    """The form of ``graph`` that ONNX Runtime runs at the precision that fp32 promises. ``graph`` is not changed."""
    model = graph.model.clone()
    two_stage_normalization.apply_to_model(model)
    _remove_unused(model)
    return Graph(model, graph.part)


def _remove_unused(model: ir.Model) -> None:
    """Drop what no output needs any more: nodes, and the weights that only they read."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
