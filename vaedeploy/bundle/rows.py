"""``PART.rows.json``: a half in pieces that each compute some rows of an image, and the cuts that join them.

A *cut* is a tensor between two pieces. A cut with rows has ``scale`` rows along ``axis`` for each row of the latent.
Pieces are ONNX models for a batch of one. They are in the document itself; their weights are in the files of the half's
other graphs. ``docs/bundle-format.md`` specifies every field.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from vaedeploy.errors import BundleError
from vaedeploy.values.kinds import PARTS, Part, Sha256

__all__ = [
    "COLUMNS",
    "Cut",
    "Dtype",
    "Norm",
    "Piece",
    "RowsTable",
    "Size",
    "Weight",
    "decode_rows",
    "encode_rows",
    "rows_name",
    "rows_names",
]

VERSION = 1
"""The version of the document. A reader that does not know it runs the whole graph."""

COLUMNS = "latent_columns"
"""The input of a piece that says how wide the latent is: int64 (1,)."""

Dtype = Literal["float16", "float32", "float64", "uint8", "bool"]

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A dimension: ``factor``, times the latent's height if ``rows``, times its width if ``columns``."""

    factor: Positive
    rows: bool = False
    columns: bool = False

    def at(self, rows: int, columns: int) -> int:
        """The dimension for that many rows and columns of the latent."""
        return self.factor * (rows if self.rows else 1) * (columns if self.columns else 1)


class Norm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A normalisation of a cut over ``groups`` groups of its channels, which reads its statistics as two inputs.

    mean: name of the float32 input with the mean of each channel's group, (1, C, 1, ...) with as many axes as the cut.
    inverse: name of the one with 1 / sqrt(variance + epsilon).
    """

    groups: Positive
    epsilon: float
    mean: str
    inverse: str


class Cut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor between pieces, or one that the half takes or gives.

    shape: its dimensions. axis, scale: where its rows are, and how many there are for each row of the latent; both None
    for a tensor without rows, which is computed from whole tensors. dtype: numpy's name.
    means, variances: names of the float32 (1, C, rows) outputs with each channel's mean and variance per row; None
    where no normalisation reads the cut. norms: the normalisations that do.
    """

    name: str
    shape: tuple[Size, ...]
    axis: int | None
    scale: Positive | None
    dtype: Dtype = "float32"
    means: str | None = None
    variances: str | None = None
    norms: tuple[Norm, ...] = ()

    def __post_init__(self) -> None:
        if (self.axis is None) != (self.scale is None):
            raise ValueError(f"{self.name} has an axis and no scale, or a scale and no axis")
        if self.axis is not None and not (0 <= self.axis < len(self.shape) and self.shape[self.axis].rows):
            raise ValueError(f"{self.name} has no rows along its axis {self.axis}")
        if self.norms and (self.axis != 2 or self.means is None or self.variances is None):
            raise ValueError(f"{self.name} is normalised, and has no statistics of its rows")

    def at(self, rows: int, columns: int) -> tuple[int, ...]:
        """Its shape for that many rows and columns of the latent."""
        return tuple(size.at(rows, columns) for size in self.shape)

    def bytes_at(self, rows: int, columns: int) -> int:
        """Its bytes for that many rows and columns of the latent."""
        return math.prod(self.at(rows, columns)) * np.dtype(self.dtype).itemsize


class Weight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A weight of a piece: the initializer ``name`` is ``bytes`` bytes at ``offset`` in the bundle's file ``file``."""

    name: str
    file: str
    offset: Count
    bytes: Count
    dtype: str
    shape: tuple[Count, ...]
    sha256: Sha256


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model that computes one cut, or everything that the half gives.

    targets: the cuts that it computes. strips: cuts of which it reads the rows that it computes, and ``halo`` steps
    more above and below. whole: cuts that it reads whole. norms: names of cuts whose statistics it takes.
    columns: whether it takes COLUMNS.
    steps: how many steps a row of the latent has: strips begin and end at steps, of ``scale / steps`` rows each. A
    piece that computes no rows has halo 0 and takes everything whole.
    operations: floating-point operations per element of the latent's plane. quadratic: those per pair of elements.
    work: the most bytes of tensors alive at once, per step and column of the latent, or, for a piece without rows, per
    element of the latent's plane. model: the ONNX model. weights: those that are not in the model.
    """

    targets: tuple[str, ...]
    strips: tuple[str, ...]
    whole: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    columns: bool = False
    steps: Positive = 1
    halo: Count = 0
    operations: Count = 0
    quadratic: Count = 0
    work: Count = 0
    model: bytes
    weights: tuple[Weight, ...] = ()

    def rows_of_step(self, cut: Cut) -> int:
        """How many rows of ``cut``, which the piece computes or reads in strips, are a step; 1 for a cut without
        rows.
        """
        return (cut.scale or 1) // self.steps


class RowsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One half as pieces, in the order in which they can run.

    factor: pixels of the image per element of the latent, along a side. input: the cut that the half takes. outputs:
    the cuts that it gives, without ``finite``, which whoever joins the strips finds out.
    untiled: peak bytes of the ``onnxruntime`` form per element of the latent's plane.
    """

    version: int = VERSION
    part: Part
    factor: Positive
    input: str
    outputs: tuple[str, ...]
    untiled: Count
    cuts: tuple[Cut, ...]
    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        cuts = {cut.name: cut for cut in self.cuts}
        known = set(cuts)
        ready = {self.input}
        for piece in self.pieces:
            if missing := {*piece.strips, *piece.whole, *piece.norms} - ready:
                raise ValueError(f"a piece takes {min(missing)} before it is computed")
            if unknown := set(piece.targets) - known:
                raise ValueError(f"a piece gives {min(unknown)}, which is not among the cuts")
            for name in (*piece.targets, *piece.strips):
                if name in known and (cuts[name].scale or piece.steps) % piece.steps:
                    raise ValueError(f"a piece has {piece.steps} steps for a row of latents, and {name} has other rows")
            if not piece.targets or len({cuts[name].axis is None for name in (*piece.targets, *piece.strips)}) > 1:
                raise ValueError("a piece gives nothing, or joins tensors with rows to others without any")
            ready.update(piece.targets)
        if missing := {self.input, *self.outputs} - (known & ready):
            raise ValueError(f"no piece gives {min(missing)}")


def rows_name(part: Part) -> str:
    """The path of a half's document in a bundle."""
    return f"{part}.rows.json"


def rows_names(folder: Path) -> dict[Part, str]:
    """The value of ``Manifest.rows`` for the documents that are in ``folder``."""
    return {part: name for part in PARTS if (folder / (name := rows_name(part))).exists()}


def encode_rows(table: RowsTable) -> bytes:
    """The bytes of the document."""
    return msgspec.json.encode(table) + b"\n"


def decode_rows(data: bytes, name: str) -> RowsTable:
    """Read the bytes of the document ``name``. Raises BundleError if they are not such a document of this version."""
    try:
        table = msgspec.json.decode(data, type=RowsTable)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{name} cannot be used: {error}. Export the bundle again") from error
    if table.version != VERSION:
        raise BundleError(f"{name} has version {table.version}; this vaedeploy knows version {VERSION} only")
    return table
