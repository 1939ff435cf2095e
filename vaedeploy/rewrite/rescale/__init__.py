"""Rescales tensors by powers of two, so that the same weights cannot overflow in fp16.

With an integer e(t) for each tensor t (``homogeneity`` says how operators relate them), the graph is rewritten as

    t -> t * 2^e(t)        w -> w * 2^(e(y) - e(x))        bias -> bias * 2^e(y)        epsilon -> epsilon * 2^(2 e(x))

for y = w * x + bias. No node is added or removed; inputs and outputs are as they were. A power of two changes no digit
of a floating-point number, so in float32 every output is the same bit for bit.

All tensors of a component share one exponent: 0 where the largest measured |t| fits in limit / 2^headroom, and
otherwise the largest exponent that makes it fit. Weights and biases may reach ``limit`` itself. A tensor whose scale is
fixed, for example by a non-linearity, stays as it is; the result names the nodes that read or write it, which must stay
in float32.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vaedeploy.graph.edit import LOWER_TYPES, free_name, lazy_tensor
from vaedeploy.rewrite.outcome import Outcome, Refusal
from vaedeploy.rewrite.rescale.exponents import Bounds, Choice, Exponents, Form
from vaedeploy.rewrite.rescale.homogeneity import Epsilon, Use, constant, relate_graph
from vaedeploy.values.words import counted

__all__ = ["Component", "Rescale", "rescale"]

FP16_MAX = 65504.0
"""The largest finite number of float16."""

FLOAT32_MIN_EXPONENT = -126
"""2 to this power is the smallest normal float32. Below it digits are lost, and hardware may give zero."""

UNLIMITED = ("Clip", "Where", "Max", "Min", "Pad")
"""Operators whose constants may exceed fp16's range: they are bounds or masks, for which infinity does as well."""


@dataclass(frozen=True)
class Component:
    """Tensors that share an exponent: each is stored as its value * 2^exponent.

    tensors: their names, in the order of the graph. maximum: the largest magnitude among their unscaled values.
    """

    exponent: int
    maximum: float
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Rescale:
    """What ``rescale`` did.

    outcome: its matches are the components that were scaled. keep_fp32: names of the nodes that read or write a tensor
    that would overflow and that nothing can scale. components: those that were scaled, in the order of the graph.
    """

    outcome: Outcome
    keep_fp32: frozenset[str]
    components: tuple[Component, ...]

    @property
    def exponents(self) -> dict[str, int]:
        """Tensor name -> exponent, for all tensors whose exponent is not 0."""
        return {tensor: component.exponent for component in self.components for tensor in component.tensors}


@dataclass(frozen=True)
class _Quantity:
    """A tensor, constant or epsilon that has an exponent.

    nodes: the one that writes it, if any, then those that read it. largest: its largest magnitude.
    """

    key: Hashable
    name: str
    nodes: tuple[ir.Node, ...]
    largest: float
    bounds: Bounds

    def overflows(self, exponent: int) -> bool:
        if isinstance(self.key, ir.Value) and not math.isfinite(self.largest):
            return True  # a constant, such as a mask, may be infinite: it is infinite in every type
        return exponent > self.bounds.upper


def rescale(model: ir.Model, maxima: Mapping[str, float], *, limit: float = FP16_MAX, headroom: int = 3) -> Rescale:
    """Scale ``model``'s tensors by powers of two so that they fit in ``limit`` / 2^``headroom``, in place.

    maxima: tensor name -> largest magnitude, as ``measure_maxima`` gives them for this same graph. A maximum that is
    not finite never fits; a tensor without one is taken to fit, which the refusals say. limit: the largest number of
    the type that the graph will be lowered to.
    """
    _name_nodes(model)
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ir.passes.common.ShapeInferencePass()(model)
    exponents = relate_graph(model)
    quantities = list(_quantities(model, exponents, maxima, limit, headroom))
    weights = [q.key for q in quantities if isinstance(q.key, Use) and q.key.is_weight()]
    choice = exponents.choose({q.key: q.bounds for q in quantities}, weights)
    for quantity in quantities:
        if isinstance(quantity.key, Epsilon):
            _scale_epsilon(quantity.key.node, choice.value(exponents.form(quantity.key)))
    _scale_constants(model, {q.key: choice.value(exponents.form(q.key)) for q in quantities if isinstance(q.key, Use)})
    components = tuple(_components(quantities, exponents, choice))
    refusals, keep = [], set()
    for quantity in quantities:
        if quantity.overflows(choice.value(exponents.form(quantity.key))):
            refusals.append(Refusal(str(quantity.nodes[0].name), _reason(quantity, exponents, choice)))
            keep |= {str(node.name) for node in quantity.nodes}
    refusals += [*_unmeasured(quantities, maxima), *_untyped_or_lowered(model)]
    return Rescale(Outcome("rescale", len(components), tuple(refusals)), frozenset(keep), components)


def _quantities(
    model: ir.Model, exponents: Exponents, maxima: Mapping[str, float], limit: float, headroom: int
) -> Iterator[_Quantity]:
    """Everything that has an exponent, in the order of the graph."""

    def tensor(value: ir.Value) -> _Quantity:
        largest = abs(maxima.get(str(value.name), 0.0))
        nodes = tuple(node for node in (value.producer(), *value.consumers()) if node is not None)
        return _Quantity(
            value, f"tensor {value.name}", nodes, largest, Bounds(upper=_highest(largest, limit / 2**headroom))
        )

    yield from (tensor(value) for value in model.graph.inputs if value in exponents and value.consumers())
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if (key := Use(node, index)) in exponents and value is not None:
                largest = _largest(value)
                upper = math.inf if node.op_type in UNLIMITED else _highest(largest, limit)
                yield _Quantity(key, f"constant {value.name}", (node,), largest, Bounds(_lowest(largest), upper))
        if (epsilon := Epsilon(node)) in exponents:
            largest = epsilon.number()
            yield _Quantity(epsilon, "epsilon", (node,), largest, Bounds(_lowest(largest)))
        yield from (tensor(value) for value in node.outputs if value in exponents)


def _highest(largest: float, limit: float) -> float:
    """The largest e with largest * 2^e <= limit; infinity where ``largest`` is zero or not finite."""
    if largest == 0 or not math.isfinite(largest):
        return math.inf
    exponent = math.frexp(limit)[1] - math.frexp(largest)[1] + 1
    while math.ldexp(largest, exponent) > limit:
        exponent -= 1
    return exponent


def _lowest(largest: float) -> float:
    """The least e <= 0 that keeps a constant's largest number normal in float32, so that it loses no digit."""
    if largest == 0 or not math.isfinite(largest):
        return -math.inf
    return min(0, FLOAT32_MIN_EXPONENT - (math.frexp(largest)[1] - 1))


def _largest(value: ir.Value) -> float:
    tensor = constant(value)
    assert tensor is not None
    array = tensor.numpy()
    # abs() would hold a second copy of the weight.
    return max(float(array.max()), -float(array.min())) if array.size else 0.0


def _scale_epsilon(node: ir.Node, exponent: int) -> None:
    if exponent:
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", math.ldexp(Epsilon(node).number(), exponent))


def _scale_constants(model: ir.Model, exponents: Mapping[Use, int]) -> None:
    """Store each constant once for each exponent that its readers need."""
    readers: dict[ir.Value, dict[int, list[Use]]] = defaultdict(lambda: defaultdict(list))
    for use, exponent in exponents.items():
        value = use.node.inputs[use.index]
        assert value is not None
        if exponent and _largest(value) != 0:
            readers[value][exponent].append(use)
    for value, by_exponent in readers.items():
        tensor = constant(value)
        assert tensor is not None
        for exponent, uses in by_exponent.items():
            scaled = _scaled(tensor, exponent)
            if value.is_initializer() and len(uses) == len(value.uses()) and not value.is_graph_output():
                value.const_value = scaled
                continue
            name = free_name(f"{value.name}.exponent{exponent}", model.graph.initializers)
            scaled.name = name
            copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=scaled)
            model.graph.register_initializer(copy)
            for use in uses:
                use.node.replace_input_with(use.index, copy)
        _remove_unread(model, value)


def _scaled(tensor: ir.TensorProtocol, exponent: int) -> ir.LazyTensor:
    """``tensor`` * 2^exponent."""
    return lazy_tensor(tensor, lambda array: np.asarray(np.ldexp(array, exponent)), tensor.dtype, tensor.name)


def _remove_unread(model: ir.Model, value: ir.Value) -> None:
    if value.uses() or value.is_graph_output():
        return
    if value.is_initializer():
        model.graph.initializers.pop(str(value.name))
    elif (node := value.producer()) is not None:
        model.graph.remove(node, safe=True)


def _components(quantities: list[_Quantity], exponents: Exponents, choice: Choice) -> Iterator[Component]:
    tensors: dict[Form, list[_Quantity]] = defaultdict(list)
    for quantity in quantities:
        if isinstance(quantity.key, ir.Value):
            tensors[exponents.form(quantity.key)].append(quantity)
    for form, members in tensors.items():
        if exponent := choice.value(form):
            names = tuple(str(q.key.name) for q in members if isinstance(q.key, ir.Value))
            yield Component(exponent, max(q.largest for q in members), names)


def _reason(quantity: _Quantity, exponents: Exponents, choice: Choice) -> str:
    form = exponents.form(quantity.key)
    if not math.isfinite(quantity.largest):
        return f"{quantity.name} was not finite when it was measured"
    if not form:
        obstacle = f"{exponents.fixed_by[quantity.key]} fixes its scale"
    elif isinstance(blocker := choice.blocked.get(form), Epsilon | Use):
        kind = "epsilon" if isinstance(blocker, Epsilon) else "constant"
        obstacle = f"with a smaller scale the {kind} of {blocker.node.name} would leave float32's normal range"
    elif (exponent := choice.value(form)) > 0:
        obstacle = f"the scale of another tensor makes it 2^{exponent} times that"
    else:
        obstacle = "a smaller scale would make another tensor overflow"
    return f"{quantity.name} reaches {quantity.largest:.3g}, too much for the lower type, and {obstacle}"


def _unmeasured(quantities: list[_Quantity], maxima: Mapping[str, float]) -> list[Refusal]:
    missing = [q for q in quantities if isinstance(q.key, ir.Value) and q.key.name not in maxima]
    if not missing:
        return []
    reason = f"{counted(len(missing), 'tensor')} not measured and taken to fit; the first is {missing[0].name}"
    return [Refusal(str(missing[0].nodes[0].name), reason)]


def _untyped_or_lowered(model: ir.Model) -> Iterator[Refusal]:
    """Refusals for nodes whose tensors have no exponent because of their types."""
    for types, fault in [
        ((None,), "with tensors whose type is not known, which are taken to fit"),
        (LOWER_TYPES, "in half precision already; rescale goes first"),
    ]:
        nodes = [node for node in model.graph if any(value.name and value.dtype in types for value in node.outputs)]
        if nodes:
            yield Refusal(str(nodes[0].name), f"{counted(len(nodes), 'node')} {fault}")


def _name_nodes(model: ir.Model) -> None:
    """Give each node a name, since refusals and ``keep_fp32`` refer to nodes by name."""
    taken = {node.name for node in model.graph}
    for index, node in enumerate(model.graph):
        if not node.name:
            node.name = free_name(f"{node.op_type}_{index}", taken)
            taken.add(node.name)
