"""The operators whose reading of rows is known, and the rule for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from vaedeploy.rewrite.rows import convolutions, movements, sums
from vaedeploy.rewrite.rows.layout import NO_ROWS, Layout, Shapes
from vaedeploy.rewrite.rows.reading import Place, Reads

__all__ = ["ELEMENTWISE", "read_of"]

ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Neg", "Abs", "Sign", "Sum", "Mean"),
    *("Sigmoid", "Tanh", "Relu", "LeakyRelu", "PRelu", "Elu", "Celu", "Selu", "Gelu", "HardSwish", "HardSigmoid"),
    *("Mish", "Swish", "Softplus", "Softsign", "Clip", "Round", "Floor", "Ceil", "Erf", "Sin", "Cos", "Min", "Max"),
    *("Cast", "Identity", "Where", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or"),
    *("Xor", "IsInf", "IsNaN"),
)

REDUCTIONS = tuple(
    f"Reduce{kind}" for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
)

RULES: Mapping[str, Callable[[Place], Reads]] = {
    **dict.fromkeys(ELEMENTWISE, sums.elementwise),
    **dict.fromkeys(REDUCTIONS, sums.reduction),
    **dict.fromkeys(("Conv", "MaxPool", "AveragePool"), convolutions.convolution),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), sums.along_axis(-1)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), sums.last_axes),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), convolutions.depth_to_space),
    **dict.fromkeys(("Reshape", "Flatten"), movements.reshape),
    "BatchNormalization": sums.per_channel,
    "Concat": movements.concat,
    "ConvTranspose": convolutions.transposed,
    "Expand": movements.expand,
    "Gather": movements.gather,
    "Gemm": sums.gemm,
    "MatMul": sums.product,
    "Pad": convolutions.pad,
    "Resize": convolutions.resize,
    "Slice": movements.slices,
    "Split": movements.split,
    "Squeeze": movements.squeeze,
    "Transpose": movements.transpose,
    "Unsqueeze": movements.unsqueeze,
}


def read_of(node: ir.Node, layouts: Mapping[ir.Value, Layout], shapes: Shapes) -> Reads:
    """What ``node`` reads. layouts: of all tensors before it.

    Raises NotByRowsError for an operator that is not known here, and for what cannot be computed by rows.
    """
    place = Place(node, layouts, shapes)
    if not place.rowed:
        if any(shapes.tall_axes(output) for output in node.outputs):
            raise place.fail("makes rows from the image's size alone")
        return Reads((NO_ROWS,) * len(node.outputs), {})
    if node.domain != "" or node.op_type not in RULES:
        raise place.fail("is not known to compute rows apart from one another")
    reads = RULES[node.op_type](place)
    for output, layout in zip(node.outputs, reads.outputs, strict=True):
        tall = set(shapes.tall_axes(output))
        if tall != {axis for axis in (layout.axis, *layout.whole) if axis is not None}:
            raise place.fail(f"has rows along axes {sorted(tall)} of {output.name}, which cannot be told apart")
    return reads
