"""Lowers a float32 graph to a strongly typed half-precision graph.

    y = f(x; w)   becomes   y = h(f(h(x); h(w))),   h = rounding to float16 or bfloat16, to nearest, ties to even

for every operator except those that need float32's range or digits. Those keep f in float32, with Casts only where the
type changes. They are:

- nodes before the first and after the last convolution, product or normalisation on each path: the latent contract's
  scale and shift, the conversion of the float image to bytes, and the check that it is finite, which sees an infinity
  of the half-precision image;
- Softmax, exponentials, roots, sums and means, and division by a tensor;
- a normalisation that is written as primitives, from x - mean to its scale and bias. x - mean is float32 because a
  mean rounded to half precision is off by 2**-12 of itself, which may be much of the deviation, and because squares
  leave float16's range above 256. The result is rounded once, as a native kernel's is;
- elementwise operators with a scalar that the lower type does not have, such as an epsilon of 1e-15 or a bound of 1e30.

Native normalisation nodes stay in the lower type (their kernels sum in float32) unless ``normalization="fp32"``.
Operators that only move data have the type of that data. Weights are rounded once, from float32, when saved.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, cast, get_args

import onnx_ir as ir
from onnx import defs

from vaedeploy.errors import InputError
from vaedeploy.graph.edit import LOWER, free_name
from vaedeploy.rewrite.outcome import Outcome
from vaedeploy.rewrite.precision.plan import Plan, is_constant, is_float
from vaedeploy.rewrite.precision.weights import FLOAT, Underflow, count_underflow, lazily_rounded

__all__ = ["Lowering", "Underflow", "lower_precision"]

HalfPrecision = Literal["fp16", "bf16"]

Interface = Literal["fp32", "lower"]

Normalization = Literal["native", "fp32"]


BF16_OPSET = 22
"""The first opset in which Conv, ConvTranspose and InstanceNormalization take bfloat16."""


@dataclass(frozen=True)
class Lowering:
    """What ``lower_precision`` did.

    outcome: its matches are the nodes that compute in the lower type, its refusals the nodes whose operator does not
    take that type. underflows: the weights in which rounding made numbers zero or subnormal.
    """

    outcome: Outcome
    underflows: tuple[Underflow, ...]


def lower_precision(
    model: ir.Model,
    precision: HalfPrecision,
    *,
    keep_fp32: Collection[str] = (),
    inputs_outputs: Interface = "fp32",
    normalization: Normalization = "native",
) -> Lowering:
    """Rewrite a float32 ``model`` in place to float16 or bfloat16.

    keep_fp32: names of nodes that stay in float32. inputs_outputs: the type of the graph's float inputs and outputs,
    which keep their names and shapes. normalization: "fp32" to compute native normalisation nodes in float32. Weights
    are rounded one at a time, when they are read or saved.

    Raises InputError for an option that is not valid, a name in ``keep_fp32`` that no node has, a graph that is not all
    float32, has control flow or functions, or, for bf16, uses operators that opset 22 changed, and a weight beyond the
    lower type's range. The model then still computes the same, but may have inferred types, initializers instead of
    Constant nodes, and no Casts from float32 to itself.
    """
    for name, value, valid in (
        ("precision", precision, get_args(HalfPrecision)),
        ("inputs_outputs", inputs_outputs, get_args(Interface)),
        ("normalization", normalization, get_args(Normalization)),
    ):
        if value not in valid:
            raise InputError(f"{name} is {value!r}; it must be one of {', '.join(valid)}")
    low = LOWER[precision]
    _check(model, keep_fp32)
    opset = _target_opset(model, precision)
    _prepare(model)
    plan = Plan(model.graph, low, opset, frozenset(keep_fp32), inputs_outputs == "fp32", normalization == "native")
    underflows = _round_constants(plan, precision)
    _apply(plan, precision)
    if opset != _opset(model):
        model.opset_imports[""] = opset
        model.ir_version = max(model.ir_version, 10)
    matches = sum(node not in plan.wide for node in plan.nodes)
    return Lowering(Outcome(f"lower_precision({precision})", matches, tuple(plan.refusals)), underflows)


def _opset(model: ir.Model) -> int:
    return model.opset_imports.get("", 1)


def _check(model: ir.Model, keep: Collection[str]) -> None:
    if missing := sorted(set(keep) - {node.name for node in model.graph}):
        raise InputError(f"keep_fp32 names {missing[0]!r}, and the graph has no node of that name")
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(o for n in model.graph for o in n.outputs)]
    for value in values:
        if value.dtype in (*LOWER.values(), ir.DataType.DOUBLE):
            raise InputError(
                f"{value.name} is {value.dtype.name}; only a graph whose floating-point tensors are all float32 can be "
                "lowered"
            )
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise InputError(f"node {node.name} ({node.op_type}) holds a graph; graphs with control flow stay in fp32")
    if model.functions:
        raise InputError("the model has functions of its own; inline them first (onnx.inliner.inline_local_functions)")


def _target_opset(model: ir.Model, precision: HalfPrecision) -> int:
    """The opset that the result needs. Raises InputError for a node that means something else there."""
    before = _opset(model)
    after = max(before, BF16_OPSET) if precision == "bf16" else before
    for node in model.graph if after != before else ():
        if node.domain:
            continue
        old, new = (defs.get_schema(node.op_type, version, "") for version in (before, after))
        defaults = {k: v.default_value for k, v in old.attributes.items() if k not in node.attributes}
        changed = [k for k in node.attributes if k not in new.attributes] + [
            k for k, v in defaults.items() if k not in new.attributes or new.attributes[k].default_value != v
        ]
        unsplit = node.op_type == "Split" and before < 18 and (len(node.inputs) < 2 or node.inputs[1] is None)
        if changed or unsplit or len(node.inputs) > new.max_input or old.deprecated:
            raise InputError(
                f"bf16 needs opset {after}, and {node.op_type} (node {node.name}) means something else there than in "
                f"opset {before}; export the model at opset 20, or 22"
            )
    return after


def _prepare(model: ir.Model) -> None:
    """Give every value a type, turn Constant nodes into initializers, and remove Casts from float32 to itself."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if any(output.type is None for node in model.graph for output in node.outputs):
        ShapeInferencePass(strict_mode=False)(model)
    for node in model.graph:
        for output in node.outputs:
            if output.type is None and output.name:
                raise InputError(f"the type of {output.name} (node {node.name}, {node.op_type}) is not known")
        if node.op_type == "Cast" and is_float(node.inputs[0]) and is_float(node.outputs[0]):
            source, output = cast(ir.Value, node.inputs[0]), node.outputs[0]
            if not output.is_graph_output():
                output.replace_all_uses_with(source)
                model.graph.remove(node, safe=True)


def _round_constants(plan: Plan, precision: HalfPrecision) -> tuple[Underflow, ...]:
    """Round each constant that is read in the lower type; one that is also read in float32 gets a rounded copy."""
    to_round: list[tuple[ir.Value, ir.TensorProtocol, list[tuple[ir.Node, int]]]] = []
    for value in plan.graph.initializers.values():
        uses = [(use.node, use.idx) for use in value.uses() if plan.type_at(use.node, use.idx) == plan.low]
        if value in plan.floats and is_constant(value) and uses:
            assert value.const_value is not None
            to_round.append((value, value.const_value, uses))
    # All are counted before any is changed, since counting may raise.
    underflows = [count_underflow(value.name or "", tensor, plan.low) for value, tensor, _ in to_round]
    for value, tensor, uses in to_round:
        result = value
        if value.is_graph_output() or len(uses) < len(value.uses()):
            result = ir.Value(name=_free(plan.graph, f"{value.name}_{precision}"), shape=value.shape)
            for node, index in uses:
                node.replace_input_with(index, result)
        result.type, result.const_value = ir.TensorType(plan.low), lazily_rounded(tensor, plan.low, result.name or "")
        if result is not value:
            plan.graph.register_initializer(result)
    return tuple(u for u in underflows if u.zeros or u.subnormals)


def _free(graph: ir.Graph, name: str) -> str:
    taken = {*graph.initializers, *(v.name for v in graph.inputs), *(o.name for n in graph for o in n.outputs)}
    return free_name(name, taken)


def _apply(plan: Plan, precision: HalfPrecision) -> None:
    """Set types, and insert Casts where they change: one for each value, however many nodes read it."""
    values = [v for v in [*plan.graph.inputs, *(o for n in plan.nodes for o in n.outputs)] if v in plan.floats]
    types = {value: plan.type_of(value) for value in values}
    reads = {v: [(u.node, u.idx, plan.type_at(u.node, u.idx) or types[v]) for u in v.uses()] for v in values}
    for value, dtype in types.items():
        value.type = ir.TensorType(dtype)
        node = value.producer()
        if node is not None and node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", dtype)
    for value in values:
        dtype = types[value]
        wanted = FLOAT if plan.fp32_interface else plan.low
        is_output = value.is_graph_output() and wanted != dtype
        others = [(node, index) for node, index, read in reads[value] if read != dtype]
        if others or is_output:
            converted = _cast(plan.graph, value, plan.low if dtype == FLOAT else FLOAT, precision)
            for node, index in others:
                node.replace_input_with(index, converted)
        if is_output:
            name = value.name
            value.name = _free(plan.graph, f"{name}_{precision if dtype == plan.low else 'fp32'}")
            converted.name = name
            for index, output in enumerate(plan.graph.outputs):
                if output is value:
                    plan.graph.outputs[index] = converted


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, precision: HalfPrecision) -> ir.Value:
    word = "fp32" if dtype == FLOAT else precision
    node = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}_to_{word}")
    (converted,) = node.outputs
    converted.name = _free(graph, f"{value.name}_to_{word}")
    converted.shape, converted.type = value.shape, ir.TensorType(dtype)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return converted
