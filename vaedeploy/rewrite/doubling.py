"""Recognises a Resize that is nearest x2 in height and width: u[..., i, j] = x[..., i // 2, j // 2].

Attributes are looked up in ``NEAREST``; sizes that the graph computes are evaluated at ``PROBES``.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from vaedeploy.graph.sizes import evaluate, evaluate_shape, symbols_of

NEAREST = {
    ("asymmetric", "floor"),
    ("asymmetric", "round_prefer_floor"),
    *(
        (coordinates, rounding)
        for coordinates in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
        for rounding in ("round_prefer_floor", "round_prefer_ceil")
    ),
}
"""The pairs (coordinate_transformation_mode, nearest_mode) that read x[i // 2] at exactly x2.

Output i lies at position i / 2 of the input with "asymmetric", and at i / 2 - 1/4 with the others, both exact in
float32. align_corners with rounding is the same function too, but its positions come within 1 / (4 n) of a tie, which
float32 cannot distinguish from the tie on large images.
"""

PROBES = (
    (10007, 10009, 10037, 10039, 10061, 10067, 10069, 10079),
    (30011, 20011, 40009, 20021, 30013, 20023, 40013, 20029),
    (65537, 50021, 65539, 50023, 65543, 50033, 65551, 50047),
)
"""Sizes at which computed sizes are compared. Each row has four for symbols, then four for axes of unknown size.

All are prime, so that a division shows. Computed sizes are polynomials in the sizes (see ``sizes.SIZE_OPERATORS`` in
``graph``), and polynomials that agree at large numbers without a pattern are the same.
"""


def why_not_double(resize: ir.Node, opset: int) -> str | None:
    """Why ``resize`` may not compute u[..., i, j] = x[..., i // 2, j // 2]; None where it does."""
    attributes = resize.attributes
    mode = attributes.get_string("mode", "nearest")
    if mode != "nearest":
        return f"its mode is {mode}, not nearest"
    coordinates = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounding = attributes.get_string("nearest_mode", "round_prefer_floor")
    if (coordinates, rounding) not in NEAREST:
        return f"coordinates {coordinates} with rounding {rounding} do not read the pixel at half the position"
    axes = [axis % 4 for axis in attributes.get_ints("axes", range(4))]
    if not {2, 3} <= set(axes):
        return "it does not scale both height and width"
    inputs = dict(zip(("x", "roi", "scales", "sizes"), resize.inputs, strict=False))
    x, scales, sizes = inputs["x"], inputs.get("scales"), inputs.get("sizes")
    assert x is not None
    wanted = [(1, 1, 2, 2)[axis] for axis in axes]
    if sizes is None:
        factors = None if scales is None else evaluate(scales, opset)
        if factors is None:
            return "its scales are not constant"
        return None if factors.tolist() == wanted else f"its scales are {factors.tolist()}, not {wanted}"
    if attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "it keeps the aspect ratio"
    if all(_is_scaled(x, sizes, opset, axes, wanted, probe) for probe in PROBES):
        return None
    return "its sizes cannot be shown to be twice the input's"


def _is_scaled(
    x: ir.Value, sizes: ir.Value, opset: int, axes: Sequence[int], wanted: Sequence[int], probe: Sequence[int]
) -> bool:
    """Whether ``sizes`` are ``wanted`` times x's along ``axes``, with sizes from ``probe`` where x's are not fixed."""
    shape = ir.Shape([None] * 4) if x.shape is None else x.shape
    symbols = sorted({name for dim in shape if isinstance(dim, ir.SymbolicDim) for name in _symbols(dim)})
    if len(shape) != 4 or len(symbols) > 4:
        return False
    values = dict(zip(symbols, probe, strict=False))
    unknown = iter(probe[4:])
    dims = [next(unknown) if dim is None else dim for dim in evaluate_shape(shape, values)]
    result = evaluate(sizes, opset, values, {x: dims})
    return result is not None and result.tolist() == [dims[a] * factor for a, factor in zip(axes, wanted, strict=True)]


def _symbols(dim: ir.SymbolicDim) -> frozenset[str]:
    try:
        return symbols_of(dim)
    except ValueError:  # notation that only the exporter knows, such as torch's TruncToInt(2.0*ToFloat(s53))
        return frozenset()
