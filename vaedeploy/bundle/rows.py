"""``PART.rows.json``: a half cut into pieces that each compute some rows of an image, and what joins them.

A *cut* is a tensor between two pieces. One with rows has, for each row of the latent, ``scale`` rows, one behind the
other along ``axis``. Pieces are ONNX models for a batch of one; they are in the document itself, and their weights in
the files of the half's other graphs. ``docs/bundle-format.md`` specifies every field.
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

    mean: name of the input float32 (1, C) with the mean of each channel's group. inverse: name of the one with
    1 / sqrt(variance + epsilon).
    """

    groups: Positive
    epsilon: float
    mean: str
    inverse: str


class Cut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor between pieces, or one that the half takes or gives.

    shape: its dimensions. axis, scale: where its rows are, and how many there are for each row of the latent; both None
    for a tensor without rows, which is computed from whole tensors. dtype: numpy's name.
    means, variances: names of the outputs float32 (C, rows) with the mean and the variance of each row of each channel;
    None where no normalisation reads it. norms: those that do.
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
    """What computes one cut, or everything that the half gives.

    targets: the cuts that it computes. strips: cuts of which it takes the same rows as it computes, and ``halo`` steps
    more above and below. whole: cuts that it takes whole. norms: names of cuts whose statistics it takes.
    columns: whether it takes COLUMNS.
    steps: how many steps there are in a row of the latent: strips begin and end at steps, of ``scale / steps`` rows.
    Where it computes no rows, halo is 0, and all that it takes is whole.
    operations: floating-point operations for each element of a latent's plane. quadratic: for each pair of elements.
    work: bytes of the tensors that are alive at the same time, at most, for each step and each column of the latent;
    for a piece without rows, for each element of the latent's plane. model: the ONNX model. weights: its weights that
    are not in the model.
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
        """How many rows of ``cut``, which the piece computes or takes strips of, a step is; 1 for one without rows."""
        return (cut.scale or 1) // self.steps


class RowsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One half as pieces, in the order in which they can run.

    factor: pixels of the image along a side for each element of the latent. input: the cut that the half takes.
    outputs: the cuts that it gives; ``finite`` is not among them, since whoever joins strips sees it.
    untiled: bytes that the ``onnxruntime`` form takes at its peak for each element of the latent's plane.
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
    """Read the bytes of the document ``name``. Raises BundleError for what is none, or has another version."""
    try:
        table = msgspec.json.decode(data, type=RowsTable)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{name} cannot be used: {error}. Export the bundle again") from error
    if table.version != VERSION:
        raise BundleError(f"{name} has version {table.version}; this vaedeploy knows version {VERSION} only")
    return table
