"""Cuts a half into pieces that each compute some rows of an image, and together exactly what the half computes.

For a tensor y = f(x) of local operators f, rows [a, b) of y are those of f(x[a - halo : b + halo]) after the rows that
the border of the strip spoils are cut off. A half is local except for its normalisations and its attention:

    group normalisation    its mean and variance become inputs; each piece also gives the mean and the variance of each
                           row of what is normalised next, and the group's are, in float64,
                           mean = mean of means      variance = mean of variances + variance of means
    attention              its keys and values are read whole, its queries by strips
    sums over positions    (linear attention) are computed from whole tensors, once

So each piece runs in strips of any height, and what lies between pieces is stored, or computed again where it is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from vaedeploy.bundle.rows import Cut
from vaedeploy.graph.graph import Graph
from vaedeploy.rewrite.outcome import Outcome, Refusal
from vaedeploy.rewrite.padding import fold_padding
from vaedeploy.rewrite.rows.half import Half
from vaedeploy.rewrite.rows.layout import NotByRowsError
from vaedeploy.rewrite.rows.pieces import PieceModel, Pieces
from vaedeploy.rewrite.upsample import fold_upsampling

__all__ = ["PieceModel", "Rows", "cut_rows"]


@dataclass(frozen=True)
class Rows:
    """A half as pieces, or the reason why it cannot be cut.

    outcome: how many pieces there are; if none, one refusal says why. cuts: the tensors between them, and the half's
    input and outputs. outputs: names of the outputs. untiled: see ``bundle.rows.RowsTable``.
    """

    outcome: Outcome
    input: str = ""
    outputs: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()
    pieces: tuple[PieceModel, ...] = ()
    untiled: int = 0


def cut_rows(graph: Graph, factor: int) -> Rows:
    """Cut a portable float32 ``graph``, which is not changed. factor: pixels of the image per element of the latent."""
    model = graph.model.clone()
    fold_padding(model)
    fold_upsampling(model, "convolutions")
    try:
        found = Pieces(Half(Graph(model, graph.part), factor))
    except NotByRowsError as error:
        return Rows(Outcome("cut_rows", 0, (Refusal(error.node, error.reason),)))
    return Rows(
        Outcome("cut_rows", len(found.pieces)),
        str(found.half.input.name),
        tuple(str(value.name) for value in found.half.outputs),
        tuple(found.cuts),
        tuple(found.pieces),
        found.untiled(),
    )
