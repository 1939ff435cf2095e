"""The result of a bisection, as data: which tensors of which graphs go wrong."""

from __future__ import annotations

import msgspec

from vaedeploy.values.kinds import Form, Part, Precision


class Step(msgspec.Struct, frozen=True):
    """A tensor, and the error before and after it.

    tensor: its name. node, operator: what computes it in the portable graph.
    module: the PyTorch module that it comes from; "" where that is not known.
    before, after: relative L2 errors against the portable graph: the largest among the tensors from which this one is
        computed, and its own. null in JSON where not finite.
    largest: the largest magnitude that the graph had to hold there, computed in float32 and scaled as the graph scales
        the tensor.
    headroom: powers of two from ``largest`` to 65504, the largest float16; below 0 it overflows. None outside float16.
    non_finite: share (0 to 1) of elements that are infinite or NaN.
    """

    tensor: str
    node: str
    operator: str
    module: str
    before: float
    after: float
    largest: float
    headroom: float | None
    non_finite: float


class Trace(msgspec.Struct, frozen=True):
    """One graph, compared with the portable one tensor by tensor.

    case, batch, height, width: the name and the size (items, pixels) of the case that it ran on.
    compared: how many tensors were compared. rescaled: whether ``rescale`` made any of them larger or smaller by a
    power of two. jumps: the tensors that jump, in the order of the graph. worst: the tensor with the largest error.
    """

    part: Part
    form: Form
    precision: Precision
    case: str
    batch: int
    height: int
    width: int
    compared: int
    rescaled: bool
    jumps: tuple[Step, ...]
    worst: Step


class Bisection(msgspec.Struct, frozen=True):
    """The result of ``bisect_bundle``.

    traces: graph by graph; none where only portable graphs failed, or where the bundle has no other graphs.
    advice: what to do about each, a line each, or why there is nothing to compare.
    """

    traces: tuple[Trace, ...]
    advice: tuple[str, ...] = ()
