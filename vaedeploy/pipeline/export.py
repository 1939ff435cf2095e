"""The stages joined: what ``vaedeploy export`` and ``vaedeploy verify`` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from vaedeploy.bundle import Bundle, create_bundle
from vaedeploy.bundle.golden import NAME as GOLDEN_NAME
from vaedeploy.bundle.golden import GoldenCase, encode_golden
from vaedeploy.bundle.graphs import graph_names
from vaedeploy.bundle.manifest import Manifest, VaeInfo
from vaedeploy.errors import InputError, VerificationError
from vaedeploy.images.photos import load_photos
from vaedeploy.pipeline.graphs import calibrate, write_forms, write_portable
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.source import find_source, load_source
from vaedeploy.system.arguments import as_list
from vaedeploy.system.heap import collect_garbage
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import ImageInput, Part, Precision
from vaedeploy.verify.graphs import verify_graphs
from vaedeploy.verify.looks import make_looks
from vaedeploy.verify.reference import compute_golden
from vaedeploy.verify.report import Report, summary
from vaedeploy.verify.shapes import verification_shapes
from vaedeploy.version import __version__

if TYPE_CHECKING:
    from vaedeploy.engines.plan import Job
    from vaedeploy.values.reference import Reference


REPORT = "report/report.json"

FRESH = "PyTorch in float64"


def export_vae(
    vae: str | Path | Reference,
    *,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    precision: Precision = "fp32",
    image_input: ImageInput = "float",
    rewrite: bool = True,
    scale: float | None = None,
    shift: float | None = None,
    force: bool = False,
    verify: bool = True,
    photos: str | Path | None = None,
    profiles: Sequence[str] = (),
    profile_folder: str | Path | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Take a VAE from weights to a verified bundle.

    vae: a preset's name, a path to a VAE of its own, or a ``Reference`` of your own modules.
    out: where the bundle goes; the VAE's name in the current directory unless given.
    weights, scale, shift: see ``load_reference``. image_input: what the encoder takes, see ``Graph``.
    precision: of the graphs that are run; the portable ones are always fp32. rewrite: apply the exact rewrites.
    force: replace a bundle that is there. verify: prove it; without, it is marked unverified.
    photos: a folder of photographs to verify on, instead of those that scikit-image carries.
    profiles, profile_folder: GPU kinds to build engines for, once the bundle is verified; see ``build_engines``, which
    says what is raised then and what the bundle has.
    progress: is told how far each stage is, see ``Progress``.

    Raises VerificationError, with its report, where a limit is missed: the bundle is there then, marked unverified.
    Whatever else is raised, nothing is left behind and what was at ``out`` is as it was.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}")
    source = find_source(vae, weights)  # to refuse what cannot be loaded before PyTorch is, which takes seconds
    jobs = _plan_builds(profiles, profile_folder)
    half = {precision if rewrite else "fp32", *(job.profile.precision for job in jobs)}
    calibrated = verify or "fp16" in half
    if calibrated:
        onnxruntime_cpu.load_library()  # to fail before the long work, not after it
    pictures = load_photos(photos) if calibrated else []
    reference: Reference | None = None
    if out is None:  # the place is known only once the VAE is; otherwise it is checked first
        reference = load_source(source, scale=scale, shift=shift, progress=progress)
        out = reference.name
    with create_bundle(out, force) as draft:
        reference = reference or load_source(source, scale=scale, shift=shift, progress=progress)
        for job in jobs:
            job.profile.check_factor(reference.latent.factor)
        contents = write_portable(reference, draft.path, image_input, progress)
        collect_garbage()
        manifest = _manifest(reference, precision, image_input, contents)
        cases: tuple[GoldenCase, ...] = ()
        if verify:
            cases = compute_golden(reference, pictures, verification_shapes(reference.latent.factor), progress)
            (draft.path / GOLDEN_NAME).write_bytes(encode_golden(cases, reference.identity))
        reference = None  # and with it the weights: ONNX Runtime needs the memory
        collect_garbage()
        calibration = None
        if calibrated:
            calibration = calibrate(draft.path, pictures, manifest.latent.factor, image_input, progress)
        applied = write_forms(draft.path, precision, calibration, rewrite)
        manifest = msgspec.structs.replace(manifest, graphs=graph_names(draft.path), rewrites=applied)
        report = None
        if verify:
            looks = make_looks(manifest.latent.factor)
            report = verify_graphs(manifest, draft.path, cases, FRESH, looks, progress)
            (draft.path / REPORT).parent.mkdir()
            (draft.path / REPORT).write_bytes(report.to_json())
            manifest = msgspec.structs.replace(manifest, verification=summary(report))
        bundle = draft.finish(manifest)
    if report is not None and not report.passed:
        raise VerificationError(_verdict(bundle, report), report)
    if jobs:
        from vaedeploy.pipeline.build import build_planned

        return build_planned(bundle, jobs, progress=progress)
    return bundle


def _plan_builds(profiles: Sequence[str], folder: str | Path | None) -> tuple[Job, ...]:
    """To fail before the long work, not after it."""
    if not as_list("profiles", profiles):
        return ()
    from vaedeploy.engines.plan import plan_builds

    return plan_builds(profiles, folder=folder)


def _manifest(
    reference: Reference, precision: Precision, image_input: ImageInput, contents: dict[Part, str]
) -> Manifest:
    """What is known before the graphs are written."""
    return Manifest(
        vaedeploy=__version__,
        vae=VaeInfo(reference.name, reference.identity, reference.architecture, reference.licence, reference.origin),
        latent=reference.latent,
        image_input=image_input,
        precision=precision,
        graphs={},
        contents=contents,
    )


def _verdict(bundle: Bundle, report: Report) -> str:
    failed = [case for case in report.cases if not case.passed]
    first = failed[0]
    return (
        f"bundle {bundle.path} failed its verification in {len(failed)} of {len(report.cases)} cases and is marked "
        f"unverified. First: {first.part}, {first.name}, {first.output}: {'; '.join(first.failures)}. "
        f"All of them: {bundle.path / REPORT}. Where it goes wrong: vaedeploy verify {bundle.path} --bisect"
    )
