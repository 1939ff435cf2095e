"""The rows form of a bundle: pieces of each half, whose weights are in the files of its other graphs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vaedeploy.bundle.graphs import file_name
from vaedeploy.bundle.rows import Piece, RowsTable, Weight, encode_rows, rows_name
from vaedeploy.values.kinds import Part

if TYPE_CHECKING:
    import onnx_ir as ir

    from vaedeploy.graph.graph import Graph
    from vaedeploy.rewrite.rows import PieceModel


log = logging.getLogger(__name__)


def write_rows(folder: Path, portable: Graph, factor: int) -> int:
    """Write the rows form of a half beside its other graphs, if it has one. Returns the number of its pieces.

    Where it has none, the log says why.
    """
    from vaedeploy.rewrite.rows import cut_rows

    part = portable.part
    rows = cut_rows(portable, factor)
    for refusal in rows.outcome.refusals:
        log.info("the %s cannot be computed by rows: %s: %s", part, refusal.node, refusal.reason)
    if not rows.pieces:
        return 0
    weights = _Weights(folder, part)
    pieces = tuple(_piece(piece, weights) for piece in rows.pieces)
    weights.write()
    table = RowsTable(
        part=part,
        factor=factor,
        input=rows.input,
        outputs=rows.outputs,
        untiled=rows.untiled,
        cuts=rows.cuts,
        pieces=pieces,
    )
    (folder / rows_name(part)).write_bytes(encode_rows(table))
    return len(pieces)


def _piece(piece: PieceModel, weights: _Weights) -> Piece:
    import onnx_ir as ir

    found = weights.outside(piece.model)
    return Piece(
        targets=piece.targets,
        strips=piece.strips,
        whole=piece.whole,
        norms=piece.norms,
        columns=piece.columns,
        steps=piece.steps,
        halo=piece.halo,
        operations=piece.operations,
        quadratic=piece.quadratic,
        work=piece.work,
        model=ir.serde.serialize_model(piece.model).SerializeToString(deterministic=True),
        weights=found,
    )


class _Weights:
    """A half's files of weights: those that it has, and a new one for weights that are in none of them."""

    def __init__(self, folder: Path, part: Part) -> None:
        self.folder, self.name = folder, f"{part}.rows.data"
        self._known = _made_before(folder, part)
        self._new: dict[str, tuple[int, bytes]] = {}
        self._size = 0

    def outside(self, model: ir.Model) -> tuple[Weight, ...]:
        """Let each weight of ``model`` except the smallest refer to a file; returns where they are."""
        import onnx_ir as ir

        from vaedeploy.graph.graph import OUTSIDE

        weights = []
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or (tensor.nbytes < OUTSIDE and not isinstance(tensor, ir.ExternalTensor)):
                continue
            data = tensor.tobytes()
            sha256 = hashlib.sha256(data).hexdigest()
            if not isinstance(tensor, ir.ExternalTensor):
                file, offset = self._known.get(sha256) or (self.name, self._add(sha256, data))
                value.const_value = ir.ExternalTensor(
                    file,
                    offset,
                    len(data),
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=name,
                    base_dir=self.folder,
                )
            tensor = value.const_value
            assert isinstance(tensor, ir.ExternalTensor)
            dtype, shape = tensor.dtype.numpy().name, tuple(tensor.shape.numpy())
            weights.append(Weight(name, str(tensor.location), tensor.offset or 0, len(data), dtype, shape, sha256))
        return tuple(weights)

    def _add(self, sha256: str, data: bytes) -> int:
        """Add ``data`` to the new file; returns its offset."""
        if sha256 not in self._new:
            self._new[sha256] = self._size, data
            self._size += len(data)
        return self._new[sha256][0]

    def write(self) -> None:
        """Write the new file."""
        if self._new:
            (self.folder / self.name).write_bytes(b"".join(data for _, data in self._new.values()))


def _made_before(folder: Path, part: Part) -> Mapping[str, tuple[str, int]]:
    """sha256 -> file and offset of the weights that the form for ONNX Runtime has in files."""
    import onnx_ir as ir

    from vaedeploy.graph.graph import load_model

    path = folder / file_name(part, "onnxruntime")
    found: dict[str, tuple[str, int]] = {}
    for value in load_model(path).graph.initializers.values() if path.exists() else ():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and str(tensor.location).endswith(f"{path.name}.data"):
            found[hashlib.sha256(tensor.tobytes()).hexdigest()] = str(tensor.location), tensor.offset or 0
    return found
