"""Estimates from a graph how much device memory its engine will take, before anything is built.

The estimate goes through the nodes in order, finds how long the builder keeps each tensor, and takes the most bytes
that are kept at once:

- pointwise operators run in the kernel of the node before or after them, so only the last tensor of a chain is kept;
- the input of a normalisation is kept until the pointwise operators after the normalisation are done;
- attention keeps its scores and their softmax whole, and beside them, in an engine for a range of sizes or for several,
  TensorRT-RTX reserves the size of the largest other tensor.

The second and third rule were found by comparing with what TensorRT-RTX 1.7.1 reports after a build
(docs/performance.md); engines of TensorRT itself were not compared.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import onnx_ir as ir

from vaedeploy.engines.profile import Profile
from vaedeploy.errors import BuildError
from vaedeploy.graph.edit import NORMALIZATIONS
from vaedeploy.graph.graph import Inputs
from vaedeploy.graph.operations import weight_bytes
from vaedeploy.graph.sizes import static_shape, with_sizes
from vaedeploy.values.shapes import size_text

GIB = 2**30


__all__ = ["Memory", "check_memory", "estimate_memory"]

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""Operators whose output shares the memory of their input."""

POINTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Max", "Min", "Where", "Not"}
    | {"Sigmoid", "Tanh", "Erf", "Relu", "LeakyRelu", "Clip", "Round", "Floor", "Cast", "IsInf", "IsNaN", "And", "Or"}
    | {"Transpose"}
)
"""Operators that run in the kernel of the node before or after them."""

INSIDE = POINTWISE | {"Softmax"}
"""Operators that share a kernel with those of this set before and after them."""

SIZES = frozenset({"Shape", "Constant", "ConstantOfShape", "Size"})
"""Operators that compute shapes and constants. Their outputs are not counted, and they do not keep their inputs."""

PLAN_OVERHEAD = 1.05
"""Bytes of a plan (a built engine) per byte of weights, beside ``SHAPE_SET_BYTES``. Measured at full size in fp16 with
TensorRT-RTX 1.7.1: 1.06 for the decoder, 0.99 for the encoder, and 1.22 for the encoder at compute capability
7.5.
"""

SHAPE_SET_BYTES = 4_400_000
"""Bytes of a plan for each optimisation profile. Measured on the same engines, with four and with ten of them: 4.38 MB
for the decoder and 4.45 MB for the encoder.
"""


@dataclass(frozen=True)
class Memory:
    """Bytes of device memory: of the engine, and of the activations in each execution context."""

    engine: int
    activations: int

    @property
    def total(self) -> int:
        return self.engine + self.activations


def check_memory(profile: Profile, inputs: Inputs) -> None:
    """Raise BuildError, naming a size that would fit, if an engine's largest size does not fit the GPU."""
    available = profile.memory_gib * GIB
    single = len(profile.shapes) == 1 and next(iter(profile.shapes.values())).static

    def memory(batch: int, height: int, width: int) -> Memory:
        sizes = inputs.sizes(batch, height, width)
        return estimate_memory(inputs.graph.model, sizes, single=single, shape_sets=len(profile.shapes))

    for name, shape in profile.shapes.items():
        batch, height, width = shape.at("max")
        needed = memory(batch, height, width)
        if needed.total <= available:
            continue
        fitting = bisect_right(
            range(1, batch), available, key=lambda b: memory(b, height, width).total
        )  # sorted, since memory grows with the batch
        advice = f"batch {fitting}" if fitting else "a smaller height and width"
        half = ", or precision fp16" if profile.precision == "fp32" else ""
        raise BuildError(
            f"the {inputs.graph.part} does not fit profile {profile.name}: at {size_text(batch, height, width)} "
            f"(shapes.{name}) it needs about {needed.total / GIB:.1f} GiB ({needed.engine / GIB:.1f} for the engine, "
            f"{needed.activations / GIB:.1f} for activations), and {profile.gpu} has {profile.memory_gib:g} GiB. "
            f"Lower the maximum there to {advice}{half}"
        )


def estimate_memory(model: ir.Model, sizes: Mapping[str, int], *, single: bool, shape_sets: int = 0) -> Memory:
    """The device memory of an engine of ``model``. Inputs and outputs are the caller's, and are not counted.

    sizes: symbolic dimension of the inputs -> its size. single: whether the engine takes one size only. shape_sets: how
    many optimisation profiles it has; 0 leaves out what they take. Raises InputError if a dimension has no size.
    """
    sized = with_sizes(model, sizes)
    engine = int(weight_bytes(model) * PLAN_OVERHEAD) + shape_sets * SHAPE_SET_BYTES
    return Memory(engine, _Layout(sized, single).peak())


class _Layout:
    """Which tensors of a graph with static shapes are kept in memory, and from which node to which."""

    def __init__(self, model: ir.Model, single: bool) -> None:
        self.nodes = list(model.graph)
        self.places = {node: place for place, node in enumerate(self.nodes)}
        self.single = single

    def peak(self) -> int:
        """The most bytes that are kept at once."""
        all_changes = [0] * (len(self.nodes) + 1)  # of the bytes kept, at each node
        score_changes = all_changes.copy()
        largest = 0
        for node in self.nodes:
            if node.op_type in VIEWS or node.op_type in SIZES:
                continue
            for value in node.outputs:
                size, is_scores = _bytes(value), self._is_scores(value)
                if value.is_graph_output() or self._is_inside(value):
                    continue
                if not is_scores:
                    largest = max(largest, size)
                for changes in (all_changes, score_changes) if is_scores else (all_changes,):
                    changes[self.places[node]] += size
                    changes[self._last_use(value) + 1] -= size
        kept = zip(accumulate(all_changes), accumulate(score_changes), strict=True)
        return max(total + (largest if scores and not self.single else 0) for total, scores in kept)

    def _readers(self, value: ir.Value) -> list[ir.Node]:
        """The nodes that read ``value``, directly or through views."""
        readers = []
        for node in value.consumers():
            readers += self._readers(node.outputs[0]) if node.op_type in VIEWS else [node]
        return [node for node in readers if node.op_type not in SIZES]

    def _is_inside(self, value: ir.Value) -> bool:
        """Whether ``value`` never leaves the kernel that computes it."""
        node, readers = value.producer(), self._readers(value)
        neighbours = [node, *readers] if node is not None and readers else [None]
        return all(node is not None and node.op_type in INSIDE for node in neighbours)

    def _is_scores(self, value: ir.Value) -> bool:
        """Whether ``value`` holds scores of attention: a product that a softmax reads, or the output of a softmax."""
        node: ir.Node | None = value.producer()
        while node is not None and node.op_type in POINTWISE | VIEWS and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        if node is not None and node.op_type == "Softmax":
            return True
        ahead = self._readers(value)
        while ahead and all(reader.op_type in POINTWISE for reader in ahead):
            ahead = self._readers(ahead[0].outputs[0])
        return node is not None and node.op_type == "MatMul" and any(reader.op_type == "Softmax" for reader in ahead)

    def _last_use(self, value: ir.Value) -> int:
        """The place of the last node that needs ``value`` in memory."""
        last = self.places[value.producer()]  # type: ignore[index]
        for node in value.consumers():
            if node.op_type in SIZES:
                continue
            last = max(last, self.places[node])
            output = node.outputs[0]
            if node.op_type in VIEWS or self._is_inside(output):
                last = max(last, self._last_use(output))
            elif node.op_type in NORMALIZATIONS:
                last = max(last, *(self._end_of_chain(reader) for reader in self._readers(output)))
        return last

    def _end_of_chain(self, node: ir.Node) -> int:
        """The place of the last pointwise node that runs in the same kernel as ``node``."""
        place = self.places[node]
        if node.op_type in POINTWISE and self._is_inside(node.outputs[0]):
            return max(place, *(self._end_of_chain(reader) for reader in self._readers(node.outputs[0])))
        return place


def _bytes(value: ir.Value) -> int:
    """The size of ``value`` in bytes; 0 if its dtype or shape is not known."""
    shape = static_shape(value)
    return 0 if shape is None or value.dtype is None else math.ceil(math.prod(shape) * value.dtype.itemsize)
