"""Reading ONNX files of any origin: what cannot be used is refused here with the reason, not where it would fail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from vaedeploy.errors import InputError
from vaedeploy.graph.graph import map_linked_weights
from vaedeploy.graph.sizes import LARGEST_SIZES
from vaedeploy.system.files import special
from vaedeploy.system.missing import missing
from vaedeploy.system.oserrors import reason
from vaedeploy.system.places import exists, is_folder

OLDEST_OPSET = 13
"""The oldest opset that is taken: from 13 on, Squeeze, Unsqueeze and ReduceSum take their axes as an input, as the
rules read and write them.
"""

MOST_NODES = 10_000
"""The most nodes that a graph may have. The halves of VAEs have some hundreds; with this many, the rewrites, counts and
comparison take about 20 s, and 100 bytes of a file can state millions.
"""

MOST_CALLS = 2_000
"""The most function calls in a graph. The time for inlining grows with their square."""

# UnicodeDecodeError: the message quotes a name that is not UTF-8.
FAULTS = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, UnicodeDecodeError)


@dataclass(frozen=True)
class Source:
    """A graph that was read.

    files: the resolved paths of its file and of those that its weights are in. They must not be written to.
    """

    path: Path
    model: ir.Model
    files: frozenset[Path]


def read_source(path: Path) -> Source:
    """Read any ONNX file; its weights stay on disk. Functions are inlined, and shapes are inferred.

    Raises InputError for a file that is missing, not ONNX, not valid, without its weights, or of an opset below 13.
    """
    if is_folder(path):
        raise InputError(f"{path} is a folder; give the .onnx file in it")
    if not exists(path):
        raise InputError(missing("file", path))
    if fault := special(path):
        raise InputError(f"{path} {fault}; give an .onnx file")
    try:
        proto = onnx.load(path, load_external_data=False)
        _check_length(path, proto)
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error
    except Exception as error:  # protobuf's errors, and whatever onnx_ir raises for a damaged graph
        raise InputError(f"{path} is not an ONNX file, or a damaged one: {error}") from error
    if not model.ir_version or not model.graph.outputs:
        raise InputError(f"{path} is not an ONNX file: it holds no graph")
    files = {path.resolve(), *_check_weights(path, model)}
    map_linked_weights(model)
    _check_opset(path, model)
    _check_inputs(path, model)
    _check_attributes(path, model)
    try:
        onnx.checker.check_model(path)
    except FAULTS as error:
        raise InputError(f"{path} is not a valid ONNX model: {first_line(error)}") from error
    _load_small(model)
    if model.functions:
        try:
            InlinePass()(model)
        except Exception as error:  # raised for calls that do not fit their functions
            raise InputError(f"{path} has functions that cannot be inlined: {error}") from error
    outputs = [(value, value.shape) for value in model.graph.outputs]
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for value, shape in outputs:  # the interface must not change
        value.shape = shape
    return Source(path, model, frozenset(files))


def _check_length(path: Path, proto: onnx.ModelProto) -> None:
    """Raise InputError for a graph that has too many nodes once its functions are inlined, or functions that call
    themselves.
    """
    functions = {(function.domain, function.name): function.node for function in proto.functions}
    lengths: dict[tuple[str, str], tuple[int, int]] = {}

    def length(nodes: Iterable[onnx.NodeProto], within: frozenset[tuple[str, str]]) -> tuple[int, int]:
        """How many nodes there are once all is inlined, and how many calls were inlined."""
        total, calls = 0, 0
        for node in nodes:
            name = node.domain, node.op_type
            inner = [(1, 0)]
            if name in functions:
                if name in within or len(within) > 100:
                    raise InputError(f"{path} has functions that call themselves, or each other too deeply: {name[1]}")
                if name not in lengths:
                    lengths[name] = length(functions[name], within | {name})
                inner = [lengths[name], (0, 1)]
            graphs = [graph for a in node.attribute for graph in (*a.graphs, *([a.g] if a.HasField("g") else []))]
            for more, called in (*inner, *(length(graph.node, within) for graph in graphs)):
                total, calls = total + more, calls + called
        return total, calls

    nodes, calls = length(proto.graph.node, frozenset())
    if nodes > MOST_NODES or calls > MOST_CALLS:
        raise InputError(
            f"{path} has {nodes:,} nodes in {calls:,} calls of functions; {MOST_NODES:,} nodes in {MOST_CALLS:,} calls "
            "are the most that are taken. Give the graph of one half of a VAE"
        )


def _check_weights(path: Path, model: ir.Model) -> set[Path]:
    """The files of the graph's weights. Raises InputError where one is missing or too short, and for a weight whose
    number of bytes does not fit its shape and type.
    """
    files = set()
    for name, tensor in _tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            try:
                tensor.numpy()  # a view of the bytes that were read
            except Exception as error:
                raise InputError(f"{path} has a weight {name} that cannot be read: {error}") from error
            continue
        if tensor.length not in (None, tensor.nbytes) or any(side < 0 for side in tensor.shape.numpy()):
            raise InputError(
                f"{path} has a weight {name} of {tensor.length} bytes, and {tensor.dtype.name} of shape {tensor.shape} "
                f"takes {tensor.nbytes}"
            )
        place, end = Path(tensor.path), (tensor.offset or 0) + (tensor.length or tensor.nbytes)
        if not place.is_file():
            raise InputError(
                f"{path} has its weights in another file, {tensor.location}, and there is no {place}. "
                "Put it there: the two belong together"
            )
        if place.stat().st_size < end:
            raise InputError(
                f"{place}, where {path} has its weights, is too short: it has {place.stat().st_size} bytes, and "
                f"{name} ends at {end}. Copy it again"
            )
        files.add(place.resolve())
    return files


def _tensors(model: ir.Model) -> Iterator[tuple[str | None, ir.TensorProtocol]]:
    """The name and the tensor of each weight and of each node's constant."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.name, value.const_value
    for node in _nodes(model):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and attribute.value is not None:
                yield node.name, attribute.value


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _load_small(model: ir.Model) -> None:
    """Read into memory every tensor that is small enough to be a Resize's scales or a Reshape's shape: shape inference
    needs those, and does not read them from other files. Node constants are read too: only weights are written to a
    separate file.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.size <= LARGEST_SIZES:
            value.const_value = ir.tensor(tensor.numpy().copy(), name=tensor.name)
    for node in _nodes(model):
        for name, attribute in node.attributes.items():
            if isinstance(attribute.value, ir.ExternalTensor):
                tensor = attribute.value
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(tensor.numpy().copy(), name=tensor.name))


def _check_inputs(path: Path, model: ir.Model) -> None:
    for value in model.graph.inputs:
        if any(isinstance(side, int) and side < 0 for side in value.shape or ()):
            raise InputError(
                f"{path} has the input {value.name} of shape {value.shape}; a dimension of any size has a name, or no "
                "value"
            )


def _check_attributes(path: Path, model: ir.Model) -> None:
    """Raise InputError for a text in a standard operator that is not UTF-8."""
    for node in _nodes(model):
        for attribute in node.attributes.values():
            if node.domain == "" and attribute.type == ir.AttributeType.STRING and isinstance(attribute.value, bytes):
                raise InputError(f"{path} has {attribute.name}={attribute.value[:20]!r} in a {node.op_type}")


def _check_opset(path: Path, model: ir.Model) -> None:
    """Raise InputError for an opset that is too old or too new, and for a graph without standard operators."""
    opset = model.opset_imports.get("")
    newest = onnx.defs.onnx_opset_version()
    if opset is None:
        raise InputError(f"{path} uses no standard ONNX operators, only those of {', '.join(model.opset_imports)}")
    if not OLDEST_OPSET <= opset <= newest:
        raise InputError(
            f"{path} has opset {opset}; {OLDEST_OPSET} to {newest} are taken. Export it again, with opset 17 or later "
            "in PyTorch, or convert it: onnx.version_converter.convert_version"
        )


def first_line(error: Exception) -> str:
    """The first line of what a library says, without its full stop."""
    return str(error).strip().split("\n", maxsplit=1)[0].rstrip(".")
