"""Finding where a bundle's graphs go wrong: the first tensors whose error jumps. ``advice`` says what to do about them,
and ``traces`` has the result.

Each form that backends run is compared, tensor by tensor, with the portable float32 graph (see ``divergence``). Let
err(t) be the relative L2 error of a tensor t, and before(t) the largest error of the tensors that t is computed from.
Then t jumps where

    err(t) > floor   and   err(t) > FACTOR * before(t),

or where t is not finite while all that it is computed from is. The floor is the error that the limits allow an output
of that precision.
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
from vaedeploy.graph.graph import load_model
from vaedeploy.numerics.divergence import Difference, measure_differences
from vaedeploy.rewrite.rescale import FP16_MAX, rescale
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import PARTS, Form, Part, Precision
from vaedeploy.verify.advice import advise
from vaedeploy.verify.graphs import PORTABLE_CASES, prepare_photo
from vaedeploy.verify.limits import LIMITS, bound_of
from vaedeploy.verify.report import Case, Report
from vaedeploy.verify.traces import Bisection, Step, Trace

__all__ = ["bisect_bundle", "find_jumps"]

WHAT = "Bisecting"

FACTOR = 3.0
"""A jump is an error of more than this many times the error before it. With 3, an error of 1 % stands out from fp16's
rounding in a full-size decoder, which is 2.7e-3 at most. In healthy graphs, of the demo VAE and of full size, no error
was above its floor; below it some grew by a larger factor, up to 6.4 (in fp32, to 4e-7).
"""

FLOORS: dict[Precision, float] = {precision: bound_of(precision, "rel_l2") for precision in LIMITS}
"""For each precision, the relative L2 error up to which no tensor jumps: the limit of an output."""


def bisect_bundle(
    bundle: Bundle | str | Path, report: Report | None = None, *, progress: Progress = silent
) -> Bisection:
    """Find the first tensors at which the graphs of a bundle depart from its portable float32 graphs.

    >>> report = vd.verify_bundle("mse840k")
    >>> for trace in vd.bisect_bundle("mse840k", report).traces:
    ...     print(trace.part, trace.form, [step.tensor for step in trace.jumps])

    report: the result of ``verify_bundle``. With it, each graph that failed is run on the smallest case that it failed.
        Without it, or where all cases passed, every form is run on the case named *odd*.
    progress: reports how many graphs are done, see ``Progress``.

    Inputs are taken from the bundle's ``golden.safetensors``. Half precision is emulated. The memory needed is that of
    two runs of the graph.

    Raises BundleError where the bundle has no such inputs or a graph was rescaled by another version of this package,
    and BackendError, with ONNX Runtime's message, where a graph cannot be run.
    """
    bundle = as_bundle(bundle)
    manifest = bundle.manifest
    if GOLDEN_NAME not in manifest.files:
        raise BundleError(f"bundle {bundle.path} has no {GOLDEN_NAME} to run on. Run: vaedeploy verify {bundle.path}")
    goldens = decode_golden(bundle.current().read(GOLDEN_NAME), manifest.vae.identity)
    cases = {case.name: case for case in goldens}
    failed = [case for case in report.cases if not case.passed] if report else []
    chosen = list(_choose(bundle, failed, next((name for name in PORTABLE_CASES if name in cases), goldens[0].name)))
    traces = []
    for done, (part, form, precision, name) in enumerate(chosen):
        progress(WHAT, done, len(chosen))
        traces.append(_trace(bundle, part, form, precision, cases[name]))
    progress(WHAT, len(chosen), len(chosen))
    found = Bisection(tuple(traces))
    return msgspec.structs.replace(found, advice=advise(found, report))


def find_jumps(differences: Sequence[Difference], floor: float) -> tuple[Step, ...]:
    """The tensors that jump, as the head of this module defines it, in the order given. floor: a relative L2 error."""
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
    """The graphs to bisect: part, form, the form's precision, and the name of the case to run it on.

    failed: the cases that failed. healthy: the case to run on where none did.
    """
    manifest = bundle.manifest
    for part in PARTS:
        for form, precision in FORMS[manifest.precision].items():
            # The form of an emulated case is "FORM, emulated PRECISION".
            cases = [case for case in failed if case.form.split(",")[0] == form]
            # A round trip fails if either half does, so it counts only where neither failed by itself.
            halves = [case for case in cases if case.part != "round trip"]
            cases = [case for case in halves if case.part == part] if halves else cases
            if form in manifest.graphs[part] and (cases or not failed):
                smallest = min(cases, key=lambda c: c.batch * c.height * c.width).name if cases else healthy
                yield part, form, precision, smallest


def _trace(bundle: Bundle, part: Part, form: Form, precision: Precision, case: GoldenCase) -> Trace:
    graphs = bundle.manifest.graphs[part]
    reference, candidate = load_model(bundle.path / graphs["portable"]), load_model(bundle.path / graphs[form])
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
    """Tensor -> the exponent of the power of two by which ``file`` stores it. ``rescale`` computes them again, with the
    same result for the same graph and maxima. Raises BundleError where another version of this package had another
    result.
    """
    components = bundle.manifest.rewrites.get(file, {}).get("rescale", 0)
    if not components:
        return {}
    calibration = decode_calibration(bundle.read(CALIBRATE_NAME))
    again = rescale(portable.clone(), calibration.of(part))
    if again.outcome.matches != components:
        raise BundleError(
            f"{file} was rescaled in {components} places, and this version would in {again.outcome.matches}: it cannot "
            "tell how its tensors are stored. Export the bundle again with --force"
        )
    return again.exponents
