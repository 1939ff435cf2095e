"""Where a bundle's graphs go wrong: the first tensors whose error jumps (``advice`` has what to do about them).

Each form that targets run is compared, tensor by tensor, with the portable float32 graph (see ``divergence``). With
err(t) the relative L2 error of a tensor t, and before(t) the largest error of the tensors that it is made from, t jumps
where

    err(t) > floor   and   err(t) > FACTOR * before(t),

or where t is not finite and all that it is made from is. The floor is what an output of that precision may be off by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle, as_bundle
from vaedeploy.bundle.calibration import NAME as CALIBRATE_NAME
from vaedeploy.bundle.calibration import decode_calibration
from vaedeploy.bundle.golden import NAME as GOLDEN_NAME
from vaedeploy.bundle.golden import GoldenCase, decode_golden
from vaedeploy.bundle.graphs import FORMS
from vaedeploy.errors import BundleError
from vaedeploy.numerics.divergence import Difference, measure_differences
from vaedeploy.rewrite.rescale import FP16_MAX, rescale
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import PARTS, Form, Part, Precision
from vaedeploy.verify.graphs import PORTABLE_CASES, prepare_photo
from vaedeploy.verify.limits import LIMITS, bound_of
from vaedeploy.verify.report import Case, Report

__all__ = ["Bisection", "Step", "Trace", "bisect_bundle", "find_jumps"]

WHAT = "Bisecting"

FACTOR = 3.0
"""Enough for 1 % of error to stand out of what fp16 rounds in a full-size decoder, 2.7e-3 at most. Healthy graphs, of
the demo VAE and of full size, had no error above its floor; below it some grew by more, up to 6.4 (fp32, to 4e-7).
"""

FLOORS: dict[Precision, float] = {precision: bound_of(precision, "rel_l2") for precision in LIMITS}


class Step(msgspec.Struct, frozen=True):
    """A tensor, and the error before and after it.

    tensor, node, operator: in the portable graph. module: the PyTorch module that it comes from, "" where that is not
    known. before, after: relative L2 error against the portable graph, the largest of what the tensor is made from
    and its own; null in JSON where it is not finite.
    largest: the largest magnitude that the graph had to hold there, as the float32 graph computes it and as this
    one stores it. headroom: powers of two from there to 65504, less than 0 where it overflows; None outside float16.
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
    """One graph, tensor by tensor.

    case, batch, height, width: what it ran on (pixels). compared: how many tensors. rescaled: whether ``rescale``
    stores any of them by another power of two. jumps: in the order of the graph. worst: what is farthest off.
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
    """What was found, graph by graph: none where only portable graphs failed, or are there."""

    traces: tuple[Trace, ...]


def bisect_bundle(
    bundle: Bundle | str | Path, report: Report | None = None, *, progress: Progress = silent
) -> Bisection:
    """Find where the graphs of a bundle part from its portable ones.

    report: of its verification; then the graphs that failed are looked at, each on its smallest case that did. Without
    one, or where all passed, every form is, on the case named *odd*. Inputs are those kept in ``golden.safetensors``;
    half precision is emulated. Memory is that of two runs of the graph.
    progress: is told how many graphs are done, see ``Progress``.

    Raises BundleError where the inputs are not there, or where the graph was rescaled by another version of this
    package, BackendError with what ONNX Runtime said.
    """
    bundle = as_bundle(bundle)
    manifest = bundle.manifest
    if GOLDEN_NAME not in manifest.files:
        raise BundleError(f"bundle {bundle.path} has no {GOLDEN_NAME} to run on. Run: vaedeploy verify {bundle.path}")
    kept = decode_golden(bundle.file(GOLDEN_NAME).read_bytes(), manifest.vae.identity)
    cases = {case.name: case for case in kept}
    failed = [case for case in report.cases if not case.passed] if report else []
    chosen = list(_choose(bundle, failed, next((name for name in PORTABLE_CASES if name in cases), kept[0].name)))
    traces = []
    for done, (part, form, precision, name) in enumerate(chosen):
        progress(WHAT, done, len(chosen))
        traces.append(_trace(bundle, part, form, precision, cases[name]))
    progress(WHAT, len(chosen), len(chosen))
    return Bisection(tuple(traces))


def find_jumps(differences: Sequence[Difference], floor: float) -> tuple[Step, ...]:
    """The tensors that jump, in the order given. floor: relative L2; see the head of this module."""
    errors = {d.tensor: d.rel_l2 for d in differences}
    broken = {d.tensor for d in differences if d.non_finite}
    jumps = []
    for difference in differences:
        if broken.isdisjoint(difference.sources):
            step = _step(difference, errors)
            if step.non_finite or step.after > max(floor, FACTOR * step.before):
                jumps.append(step)
    return tuple(jumps)


def _step(difference: Difference, errors: dict[str, float]) -> Step:
    d = difference
    in_fp16 = d.precision == "FLOAT16" and d.largest > 0
    before = max((errors[source] for source in d.sources), default=0.0)
    headroom = math.log2(FP16_MAX / d.largest) if in_fp16 else None
    return Step(d.tensor, d.node, d.operator, d.module, before, d.rel_l2, d.largest, headroom, d.non_finite)


def _choose(bundle: Bundle, failed: Sequence[Case], healthy: str) -> Iterator[tuple[Part, Form, Precision, str]]:
    """Part, form, its precision, and the name of the case to run it on."""
    manifest = bundle.manifest
    for part in PARTS:
        for form, precision in FORMS[manifest.precision].items():
            # Emulated ones have that behind the form's name.
            own = [case for case in failed if case.form.split(",")[0] == form]
            # A round trip fails with either half, and is looked into where neither failed by itself.
            halves = [case for case in own if case.part != "round trip"]
            own = [case for case in halves if case.part == part] if halves else own
            if form in manifest.graphs[part] and (own or not failed):
                smallest = min(own, key=lambda c: c.batch * c.height * c.width).name if own else healthy
                yield part, form, precision, smallest


def _trace(bundle: Bundle, part: Part, form: Form, precision: Precision, case: GoldenCase) -> Trace:
    graphs = bundle.manifest.graphs[part]
    reference, candidate = ir.load(bundle.path / graphs["portable"]), ir.load(bundle.path / graphs[form])
    exponents = _exponents(bundle, part, graphs[form], reference)
    value: NDArray[Any] = next(iter(case.latents.values()))
    if part == "encoder":
        value = prepare_photo(bundle.manifest, case.photo)
    feeds = {str(reference.graph.inputs[0].name): value}
    differences = measure_differences(reference, candidate, feeds, exponents)
    if not differences:
        raise BundleError(f"no tensor of {graphs[form]} has the name of one of {graphs['portable']}; export it again")
    errors = {d.tensor: d.rel_l2 for d in differences}
    worst = max(differences, key=lambda d: d.rel_l2 if math.isfinite(d.rel_l2) else math.inf)
    batch, height, width, _ = case.photo.shape
    return Trace(
        part=part,
        form=form,
        precision=precision,
        case=case.name,
        batch=batch,
        height=height,
        width=width,
        compared=len(differences),
        rescaled=bool(exponents),
        jumps=find_jumps(differences, FLOORS[precision]),
        worst=_step(worst, errors),
    )


def _exponents(bundle: Bundle, part: Part, file: str, portable: ir.Model) -> dict[str, int]:
    """Those with which ``file`` was written: ``rescale`` gives the same for the same graph and maxima."""
    components = bundle.manifest.rewrites.get(file, {}).get("rescale", 0)
    if not components:
        return {}
    calibration = decode_calibration(bundle.file(CALIBRATE_NAME).read_bytes())
    again = rescale(portable.clone(), calibration.of(part))
    if again.outcome.matches != components:
        raise BundleError(
            f"{file} was rescaled in {components} places, and this version would in {again.outcome.matches}: it cannot "
            "tell how its tensors are stored. Export the bundle again with --force"
        )
    return again.exponents
