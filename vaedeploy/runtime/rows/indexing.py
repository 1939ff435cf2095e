"""How many items ONNX Runtime's CUDA provider computes at once without silent errors.

Its kernels count elements in 32 bits. Beyond that they overwrite some elements and leave others as they were, and the
run succeeds. PyTorch splits batches for the same reason.
"""

from __future__ import annotations

import math

from vaedeploy.bundle.rows import RowsTable

__all__ = ["items_at_once"]

MOST_ELEMENTS = 2**31 - 1
"""The most elements of a tensor that the provider's elementwise kernels and cuDNN can number, by their sources and
documentation; it was not tried.
"""

MOST_SCORES = 2**32
"""The most elements of a tensor in which the provider's softmax finds each row: it multiplies the row's number by the
row's size in 32 bits. On an H200 the float32 decode of two items of 49,152 tokens each (4.8e9 scores) was 5 % off, and
that of one item (2.4e9) right.
"""


def items_at_once(table: RowsTable, rows: int, columns: int, whole_scores: bool) -> int:
    """The most items of a size that one run of the whole graph may have; 0 if not even one.

    rows, columns: of the latent. whole_scores: whether the graph has all scores of an attention in one tensor.
    """
    count = MOST_ELEMENTS // max(math.prod(cut.at(rows, columns)) for cut in table.cuts)
    if whole_scores and any(piece.quadratic for piece in table.pieces):
        count = min(count, MOST_SCORES // (rows * columns) ** 2)
    return count
