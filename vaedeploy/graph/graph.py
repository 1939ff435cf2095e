"""One ONNX model and the half of the VAE that it computes: ``export`` makes such graphs, ``rewrite`` changes them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vaedeploy.values.kinds import Part
from vaedeploy.values.shapes import CORNERS, ShapeSet


@dataclass(frozen=True)
class Graph:
    """One ONNX model (an ``onnx_ir`` model) and the half of the VAE that it computes.

    ``values.interface.Interface`` gives the names, shapes and dtypes of its input and outputs.
    """

    model: ir.Model
    part: Part


@dataclass(frozen=True)
class Inputs:
    """Computes shapes of a graph's only input: an image, or a latent whose sides are smaller by ``factor``."""

    graph: Graph
    factor: int

    @property
    def value(self) -> ir.Value:
        return self.graph.model.graph.inputs[0]

    def sizes(self, batch: int, height: int, width: int) -> dict[str, int]:
        """The input's symbolic dimensions, name -> size, for ``batch`` images of ``height`` x ``width`` pixels."""
        divisor = self.factor if self.graph.part == "decoder" else 1
        names = [str(dim) for dim in self.value.shape or () if not isinstance(dim, int)]
        return dict(zip(names, (batch, height // divisor, width // divisor), strict=True))

    def profile(self, shape: ShapeSet) -> tuple[list[int], list[int], list[int]]:
        """The input's shape at each corner of ``shape``: min, opt and max."""
        corners = [self.sizes(*shape.at(corner)) for corner in CORNERS]
        dims = list(self.value.shape or ())
        least, best, most = ([d if isinstance(d, int) else sizes[str(d)] for d in dims] for sizes in corners)
        return least, best, most


def save_graph(graph: Graph, path: Path) -> None:
    """Write the portable form: the graph to ``path``, and its weights beside it to ``path`` + ``.data``."""
    ir.save(graph.model, path, external_data=f"{path.name}.data")


def release_weights(graph: Graph) -> None:
    """Drop the weights of a graph that has been saved.

    The exporter keeps the graph that it made last, whose weights would keep the module's memory in use.
    """
    for value in graph.model.graph.initializers.values():
        value.const_value = None


def save_form(graph: Graph, path: Path, *, shared: bool = True) -> None:
    """Write a rewritten form of a graph that was loaded from ``path``'s directory.

    shared: True to refer to tensors that are in that directory's files already; the others are written to ``path`` +
    ``.data``, where other graphs can refer to them, and small ones into ``path`` itself. False to write every weight to
    ``path`` + ``.data``.
    """
    if shared:
        _put_outside(graph.model, path)
    ir.save(graph.model, path, external_data=None if shared else f"{path.name}.data")


OUTSIDE = 1024
"""From this many bytes on, a form's weight is in a file beside it."""


def _put_outside(model: ir.Model, path: Path) -> None:
    """Write the weights of ``model`` that are in no file, except small ones, to ``path`` + ``.data``."""
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    inside = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor is not None and not isinstance(tensor, ir.ExternalTensor) and tensor.nbytes >= OUTSIDE
    }
    if not inside:
        return
    written = ir.external_data.convert_tensors_to_external(list(inside.values()), path.parent, f"{path.name}.data")
    for name, tensor in zip(inside, written, strict=True):
        model.graph.initializers[name].const_value = tensor


def load_graph(path: Path, part: Part) -> Graph:
    """Read a graph from ``path``; its weights stay on disk until they are used."""
    return Graph(load_model(path), part)


def load_model(path: Path) -> ir.Model:
    """Read any ONNX model from ``path``; its weights stay on disk until they are used. Raises OSError."""
    model = ir.load(path)
    map_linked_weights(model)
    return model


def map_linked_weights(model: ir.Model) -> None:
    """Let weights be read from files that have several names (hard links), as in a copy by ``cp -al`` and in backups.

    onnx_ir refuses them, since a name in the model's folder might link to a secret file. But whoever may read a file
    under one name may read it under another, so refusing gains nothing here.
    """
    whole: dict[str, np.memmap[Any, Any]] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and _has_links(tensor):
                if (path := str(tensor.path)) not in whole:
                    whole[path] = np.memmap(path, np.uint8, mode="r")
                value.const_value = _mapped(tensor, whole[path])


def _has_links(tensor: ir.ExternalTensor) -> bool:
    """Whether a tensor is in a file with several names, in its model's folder, as whole bytes."""
    file = Path(tensor.path)
    inside = file.resolve().is_relative_to(Path(tensor.base_dir).resolve())
    return inside and bool(tensor.nbytes) and tensor.dtype.bitwidth >= 8 and file.stat().st_nlink > 1


def _mapped(tensor: ir.ExternalTensor, file: np.memmap[Any, Any]) -> ir.TensorProtocol:
    """``tensor`` as a view of the memory that its file is mapped to."""
    start = tensor.offset or 0
    data = file[start : start + tensor.nbytes].view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
    return ir.Tensor(data, dtype=tensor.dtype, name=tensor.name)


def module_path(node: ir.Node) -> str:
    """Path of the PyTorch module that ``node`` comes from, such as ``decoder.mid_block.resnets.0.conv1``.

    It is what torch's exporter recorded: empty where it recorded none, and for nodes of the outermost module itself.
    """
    # The property is a list in Python's notation: "", the modules from the outermost inwards, and the operation's name.
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    return scopes[-2] if len(scopes) > 2 else ""


def content_sha256(graph: Graph) -> str:
    """sha256 of what a graph computes: weights, nodes, opset versions, names, types and shapes of inputs and outputs.

    The producer's name, the nodes' metadata and the place where the weights are stored do not count.
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
