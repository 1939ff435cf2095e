"""Small halves of VAEs as ONNX graphs, and what their pieces compute strip by strip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vaedeploy.bundle.rows import Piece, RowsTable, decode_rows, rows_name
from vaedeploy.graph.graph import Graph
from vaedeploy.pipeline.rows import write_rows
from vaedeploy.runtime.rows.layout import Layout
from vaedeploy.runtime.rows.plan import Plan
from vaedeploy.runtime.rows.store import Workspace
from vaedeploy.runtime.rows.strips import Run, RunPiece

CHANNELS = 4


class Network:
    """Builds a decoder: each method adds a layer behind the last one, whose output is ``x``."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.x, self.channels = "latent", CHANNELS
        self._random = np.random.default_rng(seed)

    def add(self, operator: str, *more: str, outputs: int = 1, first: str | None = None, **attributes: Any) -> Network:
        names = [f"{operator.lower()}_{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        inputs = [self.x if first is None else first, *more]
        self.nodes.append(helper.make_node(operator, inputs, names, name=names[0], **attributes))
        self.x = names[0]
        return self

    def constant(self, array: Any, dtype: Any = np.int64) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(array, dtype), name))
        return name

    def random(self, *shape: int) -> str:
        scale = 1 / np.sqrt(np.prod(shape[1:]) or 1)
        return self.constant(self._random.standard_normal(shape) * scale, np.float32)

    def conv(self, channels: int = 8, kernel: int = 3, **attributes: Any) -> Network:
        """pads: [kernel // 2] * 4 where none are given."""
        attributes.setdefault("pads", [kernel // 2] * 4)
        weight = self.random(channels, self.channels, kernel, kernel)
        self.channels = channels
        return self.add("Conv", weight, self.random(channels), **attributes)

    def norm(self, groups: int = 2) -> Network:
        """Group normalisation as torch's exporter writes it."""
        x, ones = self.x, self.constant(np.ones(groups), np.float32)
        self.add("Shape", first=x)
        shape = self.x
        self.add("Reshape", self.constant([0, groups, -1]), first=x)
        self.add("InstanceNormalization", ones, self.constant(np.zeros(groups), np.float32), epsilon=1e-5)
        self.add("Reshape", shape)
        gamma, beta = (self.constant(self._random.standard_normal((self.channels, 1, 1)), np.float32) for _ in "ab")
        return self.add("Mul", gamma).add("Add", beta)

    def silu(self) -> Network:
        x = self.x
        return self.add("Sigmoid").add("Mul", x)

    def block(self, channels: int = 8) -> Network:
        """A residual block."""
        x, before = self.x, self.channels
        self.norm().silu().conv(channels).norm().silu().conv(channels)
        result, self.x, self.channels = self.x, x, before
        if before != channels:
            self.conv(channels, 1)
        return self.add("Add", result)

    def up(self) -> Network:
        """Nearest x2, with sizes that are computed from the latent's as exporters do."""
        x, scales = self.x, self.constant([1, 1, 2, 2], np.float32)
        exact = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.add("Resize", "", scales, first=x, **exact)

    def attention(self) -> Network:
        """Attention of one head over all positions, with a residual."""
        x, width = self.x, self.channels
        self.norm().add("Reshape", self.constant([0, width, -1])).add("Transpose", perm=[0, 2, 1])
        tokens = self.x
        parts = [self.add("MatMul", self.random(width, width), first=tokens).x for _ in range(3)]
        keys = self.add("Transpose", first=parts[1], perm=[0, 2, 1]).x
        self.add("MatMul", keys, first=parts[0]).add("Softmax", axis=-1).add("MatMul", parts[2])
        self.add("Transpose", perm=[0, 2, 1])
        tokens = self.x
        shape = self.add("Shape", first=x).x
        return self.add("Reshape", shape, first=tokens).add("Add", x)

    def graph(self, scale: int = 1) -> Graph:
        """The decoder, whose image has ``scale`` rows for each of the latent's."""
        self.conv(3, 1)
        self.nodes[-1].output[0] = "image"
        sides = ["latent_height", "latent_width"]
        if scale > 1:
            sides = [f"{scale}*{side}" for side in sides]
        shapes = (["batch", CHANNELS, "latent_height", "latent_width"], ["batch", 3, *sides])
        takes, gives = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip(("latent", "image"), shapes, strict=True)
        )
        graph = helper.make_graph(self.nodes, "decoder", [takes], [gives], self.weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return Graph(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True)), "decoder")


def table_of(folder: Path, graph: Graph, factor: int = 1) -> RowsTable:
    """The pieces of a graph, written to ``folder``."""
    assert write_rows(folder, graph, factor)
    return decode_rows((folder / rows_name(graph.part)).read_bytes(), "rows")


def whole(graph: Graph, given: NDArray[Any]) -> NDArray[Any]:
    """What the graph computes at once."""
    model = ir.serde.serialize_model(graph.model).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    result: NDArray[Any] = session.run(["image"], {"latent": given})[0]
    return result


def by_rows(
    folder: Path,
    table: RowsTable,
    item: NDArray[Any],
    height: int,
    virtual: Sequence[str] = (),
    on_disk: bool = False,
) -> NDArray[Any]:
    """What the pieces compute in strips of ``height`` steps.

    virtual: cuts that are computed again. on_disk: whether the others are stored in files of ``folder``.
    """
    layout = Layout(table, *item.shape[2:], frozenset(virtual), on_disk)
    heights = tuple(min(layout.all_steps(turn.piece), height) for turn in layout.turns)
    cut = layout.cuts[table.outputs[0]]
    results = {cut.name: np.empty(cut.at(*item.shape[2:]), cut.dtype)}
    workspace = Workspace(folder) if on_disk else None
    run = Run(Plan(layout, heights, 0, 0, 0.0), lambda pieces: _opened(folder, pieces), workspace=workspace)
    run.compute(item, results)
    assert run.finite
    return results[cut.name]


@contextmanager
def _opened(folder: Path, pieces: Sequence[Piece]) -> Iterator[list[RunPiece]]:
    runners = []
    for piece in pieces:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        values = []
        for weight in piece.weights:
            data = (folder / weight.file).read_bytes()[weight.offset : weight.offset + weight.bytes]
            array = np.frombuffer(data, weight.dtype).reshape(weight.shape)
            values.append(onnxruntime.OrtValue.ortvalue_from_numpy(array))
        if values:
            options.add_external_initializers([weight.name for weight in piece.weights], values)
        runners.append(onnxruntime.InferenceSession(piece.model, options, providers=["CPUExecutionProvider"]).run)
    yield runners
