"""One ONNX model and which half of the VAE it is: what ``export`` makes and ``rewrite`` changes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from vaedeploy.values.kinds import Part
from vaedeploy.values.shapes import CORNERS, ShapeSet


@dataclass(frozen=True)
class Graph:
    """One ONNX model (an ``onnx_ir`` model) and the part that it is. ``Interface`` in ``values`` has the names, shapes
    and dtypes of its input and outputs.
    """

    model: ir.Model
    part: Part


@dataclass(frozen=True)
class Inputs:
    """A graph and the sizes of its one input: an image, or a latent smaller by ``factor``."""

    graph: Graph
    factor: int

    @property
    def value(self) -> ir.Value:
        return self.graph.model.graph.inputs[0]

    def sizes(self, batch: int, height: int, width: int) -> dict[str, int]:
        """The input's symbolic dimensions for images of that size."""
        unit = self.factor if self.graph.part == "decoder" else 1
        names = [str(dim) for dim in self.value.shape or () if not isinstance(dim, int)]
        return dict(zip(names, (batch, height // unit, width // unit), strict=True))

    def profile(self, shape: ShapeSet) -> tuple[list[int], list[int], list[int]]:
        """The input's shape at each corner of ``shape``."""
        at = [self.sizes(*shape.at(corner)) for corner in CORNERS]
        least, best, most = ([d if isinstance(d, int) else s[str(d)] for d in self.value.shape or ()] for s in at)
        return least, best, most


def save_graph(graph: Graph, path: Path) -> None:
    """Write the portable form: ``path`` and, beside it, its weights in ``path`` + ``.data``."""
    ir.save(graph.model, path, external_data=f"{path.name}.data")


def release_weights(graph: Graph) -> None:
    """Let go of the weights of a graph that is saved. The exporter keeps the graph that it made last, and with it would
    keep the module's memory.
    """
    for value in graph.model.graph.initializers.values():
        value.const_value = None


def save_form(graph: Graph, path: Path, *, shared: bool = True) -> None:
    """Write another form of a graph loaded from ``path``'s directory.

    shared: tensors that are on disk there are referred to, and the few others lie in the file itself. Otherwise every
    weight is written to ``path`` + ``.data``.
    """
    ir.save(graph.model, path, external_data=None if shared else f"{path.name}.data")


def load_graph(path: Path, part: Part) -> Graph:
    """Read ``path``; its weights stay on disk until they are looked at."""
    return Graph(ir.load(path), part)


def module_path(node: ir.Node) -> str:
    """The PyTorch module that ``node`` comes from, such as ``decoder.mid_block.resnets.0.conv1``, as torch's exporter
    wrote it down; empty where it did not, and for what the outermost module itself computes.
    """
    # A list in Python's notation: "", the modules from the outermost on, and last the operation's own name.
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    return scopes[-2] if len(scopes) > 2 else ""


def content_sha256(graph: Graph) -> str:
    """sha256 over what a graph computes: weights, nodes, names and types of inputs and outputs; not over who made it or
    where its weights lie.
    """
    digest = hashlib.sha256()
    for name, value in sorted(graph.model.graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        digest.update(f"{name} {tensor.dtype.name} {tensor.shape}\0".encode())
        digest.update(tensor.tobytes())
    for value in (*graph.model.graph.inputs, *graph.model.graph.outputs):
        digest.update(f"{value.name} {value.dtype} {value.shape}\0".encode())
    for node in graph.model.graph:
        proto = ir.to_proto(node)
        del proto.metadata_props[:]
        proto.doc_string = ""
        digest.update(proto.SerializeToString(deterministic=True))
    digest.update(repr(sorted(graph.model.opset_imports.items())).encode())
    return digest.hexdigest()
