"""Runs two forms of one graph side by side, and measures how far each tensor of one is from the other's.

Rewrites keep the names of the tensors that they do not remove, so a tensor of the candidate is compared with the
reference's tensor of the same name. Both graphs are joined into one, in which each tensor is followed at once by its
counterpart and the reductions that compare them: only numbers leave ONNX Runtime, and a tensor is freed after its last
reader. The memory is therefore that of two runs, however many tensors there are.

With t the reference's tensor, c the candidate's, and e the exponent with which the candidate stores it (see
``rewrite.rescale``; 0 unless given), c is compared with u = t * 2^e, which loses no digit of t:

    relative L2 = |c - u| / |u|

Half-precision candidates run as ``emulation`` describes. The reference takes its means in two stages (see
``rewrite.normalization``): ONNX Runtime's own means were 7e-5 off within a demo decoder at 512x512, which is more than
the differences to be found in a float32 candidate.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vaedeploy.errors import BackendError
from vaedeploy.graph.graph import module_path
from vaedeploy.numerics.emulation import save_emulating
from vaedeploy.rewrite.normalization import split_means
from vaedeploy.rewrite.precision.plan import LINEAR
from vaedeploy.runtime.onnxruntime_cpu import measuring_session, running

__all__ = ["Difference", "measure_differences"]

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

STEPS = ("Round", "Floor", "Ceil")
"""Operators that turn the smallest error into a whole level. Nothing that depends on their results is compared."""

ERROR, SIZE, HIGHEST, LOWEST, BROKEN = range(5)
"""Positions of the numbers that compare two tensors: |c - u|^2, |u|^2, max u, min u, and the share of c that is not
finite.
"""


@dataclass(frozen=True)
class Difference:
    """One tensor of the candidate against the reference's.

    tensor: its name in both graphs. node, operator, module: the reference's node that makes it, that node's operator,
    and the path of its PyTorch module ("" where none is recorded). precision: the type of the candidate's tensor, such
    as ``FLOAT16``. sources: the compared tensors that it is made from, with no other compared tensor in between.
    rel_l2: norm of the difference over norm of the reference; infinite or NaN where the candidate is.
    largest: the largest magnitude that the candidate had to hold to compute it, measured in the reference: of the
    tensor itself, and of tensors that are computed on the way from ``sources``, such as attention's scores.
    non_finite: share (0 to 1) of the candidate's elements that are infinite or NaN.
    """

    tensor: str
    node: str
    operator: str
    module: str
    precision: str
    sources: tuple[str, ...]
    rel_l2: float
    largest: float
    non_finite: float


@dataclass
class _Pair:
    """A tensor of the reference and its counterpart in the candidate.

    name: their common name. maker: the reference's node that made the tensor before means were split. node: that node's
    name. hidden: results of products and convolutions that the reference computes on the way from ``sources``, and
    that have no counterpart of the same name. sources: as in ``Difference``.
    """

    name: str
    maker: ir.Node
    node: str
    reference: ir.Value
    candidate: ir.Value
    hidden: list[ir.Value] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


def measure_differences(
    reference: ir.Model,
    candidate: ir.Model,
    feeds: Mapping[str, NDArray[Any]],
    exponents: Mapping[str, int] | None = None,
) -> list[Difference]:
    """The difference of each floating-point tensor whose name both graphs have, in the order of the reference's nodes.

    reference: a float32 graph. candidate: another form of it, with the same inputs, float32 or half precision. Neither
    is changed. feeds: an array for each graph input, by name. exponents: tensor name -> exponent, for the tensors that
    the candidate stores scaled.
    Tensors inside the subgraphs of control flow are not compared.

    A norm is the root of a sum of squares in float32: from magnitudes of 1e15 on, it overflows.

    Raises BackendError with what ONNX Runtime said.
    """
    pairs = _pair(reference.clone(), model := candidate.clone())
    if not pairs:
        return []
    # Read now, since emulation changes the types.
    types = [pair.candidate.dtype.name if pair.candidate.dtype else "" for pair in pairs]
    _join(model, pairs, exponents or {})
    with tempfile.TemporaryDirectory(prefix="vaedeploy-") as folder:
        path = Path(folder) / "joined.onnx"
        save_emulating(model, path)
        session = measuring_session(path)
        try:
            with running() as options:
                numbers = iter([float(number) for number in session.run(None, dict(feeds), options)])
        except Exception as error:  # ONNX Runtime's errors have no common type
            raise BackendError(f"ONNX Runtime failed to compare the graphs: {error}") from error
        del session  # Windows deletes no file that is open
    return [_difference(pair, dtype, numbers) for pair, dtype in zip(pairs, types, strict=True)]


def _difference(pair: _Pair, dtype: str, numbers: Iterator[float]) -> Difference:
    measured = [next(numbers) for _ in range(5)]
    hidden = [abs(next(numbers)) for _ in range(2 * len(pair.hidden))]
    return Difference(
        tensor=pair.name,
        node=pair.node,
        operator=pair.maker.op_type,
        module=module_path(pair.maker),
        precision=dtype,
        sources=tuple(pair.sources),
        rel_l2=math.sqrt(measured[ERROR]) / (math.sqrt(measured[SIZE]) or 1.0),
        largest=max(abs(measured[HIGHEST]), abs(measured[LOWEST]), *hidden),
        non_finite=measured[BROKEN],
    )


def _pair(reference: ir.Model, candidate: ir.Model) -> list[_Pair]:
    """The tensors to be compared, in the order of the reference's nodes. Splits the reference's means."""
    # Looked up before the split, since the candidate may use the names of the split's new tensors for other tensors.
    makers = {v.name: node for node in reference.graph if node.op_type != "Constant" for v in node.outputs}
    split_means(reference)
    named = {v.name: v for node in candidate.graph if node.op_type != "Constant" for v in node.outputs}
    pairs: list[_Pair] = []
    compared: set[ir.Value] = set()
    stepped: set[ir.Value] = set()
    for node in reference.graph:
        if node.op_type in STEPS or not stepped.isdisjoint(v for v in node.inputs if v is not None):
            stepped.update(node.outputs)
            continue
        for value in node.outputs:
            counterpart, maker = named.get(value.name), makers.get(value.name)
            if counterpart is None or maker is None or not {value.dtype, counterpart.dtype}.issubset(FLOATS):
                continue
            pair = _Pair(str(value.name), maker, maker.name or "", value, counterpart)
            for source in _walk_back(value, compared):
                if source in compared:
                    pair.sources.append(str(source.name))
                elif (producer := source.producer()) and producer.op_type in LINEAR:
                    pair.hidden.append(source)
            compared.add(value)
            pairs.append(pair)
    return pairs


def _walk_back(value: ir.Value, stops: set[ir.Value]) -> Iterator[ir.Value]:
    """All tensors from which ``value`` is made, back to ``stops`` and including them."""
    seen: set[ir.Value] = set()
    node = value.producer()
    waiting = [v for v in node.inputs if v is not None] if node else []
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        yield source
        node = source.producer()
        if source not in stops and node is not None:
            waiting += [v for v in node.inputs if v is not None]


def _join(model: ir.Model, pairs: Sequence[_Pair], exponents: Mapping[str, int]) -> None:
    """Move the reference's graph into ``model``, the candidate's. The only outputs of the joined graph are the numbers
    of ``_compare``, pair by pair.
    """
    graph, reference = model.graph, pairs[0].reference.graph
    assert reference is not None
    graph.outputs.clear()
    reference.outputs.clear()
    for kept, value in zip(graph.inputs, reference.inputs, strict=True):
        value.replace_all_uses_with(kept)
    scales = {v: exponents.get(str(v.name), 0) for pair in pairs for v in (pair.reference, *pair.hidden)}
    _prefix_names(reference, {str(v.name) for node in graph for v in (*node.inputs, *node.outputs) if v is not None})
    for value in list(reference.initializers.values()):
        del reference.initializers[str(value.name)]
        graph.register_initializer(value)
    waiting = iter(list(reference))
    reference.remove(list(reference))
    index = {node: number for number, node in enumerate(graph)}
    placed: set[ir.Node] = set()
    last: ir.Node | None = None
    farthest = -1
    for pair in pairs:
        producer = pair.candidate.producer()
        assert producer is not None
        if last is None or index[producer] > farthest:
            last, farthest = producer, index[producer]
        moved = []
        while pair.reference.producer() not in placed:
            moved.append(next(waiting))
            placed.add(moved[-1])
        tape = ir.tape.Tape()
        numbers = _compare(tape, pair, scales)
        graph.insert_after(last, nodes := [*moved, *tape.nodes])
        graph.outputs.extend(numbers)
        last = nodes[-1]
    RemoveUnusedNodesPass()(model)


def _prefix_names(graph: ir.Graph, taken: set[str]) -> None:
    """Give every tensor and node a prefix, so that no name is in ``taken``."""
    prefix = "reference/"
    while any(name.startswith(prefix) for name in taken):
        prefix += "/"
    for value in (*graph.initializers.values(), *(v for node in graph for v in node.outputs)):
        value.name = f"{prefix}{value.name}"
    for node in graph:
        node.name = f"{prefix}{node.name}"


def _compare(tape: ir.tape.Tape, pair: _Pair, exponents: Mapping[ir.Value, int]) -> list[ir.Value]:
    """The five numbers at ``ERROR`` to ``BROKEN``, then the maximum and the minimum of each hidden tensor."""

    def add(operator: str, *inputs: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT, **attributes: Any) -> ir.Value:
        return tape.op(operator, inputs, attributes, output=ir.Value(type=ir.TensorType(dtype)))

    def number(operator: str, value: ir.Value) -> ir.Value:
        result = add(operator, value, keepdims=0)
        result.shape = ir.Shape([])
        return result

    def scaled(value: ir.Value) -> ir.Value:
        factor = ir.tensor(math.ldexp(1.0, exponents[value]), ir.DataType.FLOAT)
        return add("Mul", value, add("Constant", value=factor)) if exponents[value] else value

    # Emulation rounds a tensor before anything reads it, and so before this Cast.
    candidate, expected = add("Cast", pair.candidate, to=ir.DataType.FLOAT), scaled(pair.reference)
    numbers = [number("ReduceSumSquare", add("Sub", candidate, expected))]
    numbers += [number(operator, expected) for operator in ("ReduceSumSquare", "ReduceMax", "ReduceMin")]
    # A number minus itself is 0, unless it is infinite or NaN.
    broken = add("IsNaN", add("Sub", candidate, candidate), dtype=ir.DataType.BOOL)
    numbers.append(number("ReduceMean", add("Cast", broken, to=ir.DataType.FLOAT)))
    for value in map(scaled, pair.hidden):
        numbers += [number(operator, value) for operator in ("ReduceMax", "ReduceMin")]
    return numbers
