"""Weights -> a verified bundle: what ``vaedeploy export`` does."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from vaedeploy.bundle import Bundle, create_bundle
from vaedeploy.bundle.golden import NAME as GOLDEN_NAME
from vaedeploy.bundle.golden import GoldenCase, encode_golden
from vaedeploy.bundle.graphs import EXTRA_FORMS, graph_names
from vaedeploy.bundle.manifest import Manifest, VaeInfo
from vaedeploy.bundle.rows import rows_names
from vaedeploy.bundle.stored import is_bundle
from vaedeploy.errors import InputError, VerificationError, WeightsError
from vaedeploy.images.opacity import has_opacity
from vaedeploy.images.photos import load_photos
from vaedeploy.pipeline.graphs import calibrate, write_forms, write_portable
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.source import find_source, known_name, load_source
from vaedeploy.system.arguments import as_list
from vaedeploy.system.heap import collect_garbage
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import Backend, ImageInput, Part, Precision, Target
from vaedeploy.values.latent import RGB, RGBA
from vaedeploy.values.presets import preset_names
from vaedeploy.values.words import counted
from vaedeploy.verify.graphs import verify_graphs
from vaedeploy.verify.looks import make_looks
from vaedeploy.verify.reference import compute_golden
from vaedeploy.verify.report import Report, summary
from vaedeploy.verify.shapes import verification_shapes
from vaedeploy.verify.spread import spread_remark
from vaedeploy.verify.verdicts import find_verdicts
from vaedeploy.version import __version__

if TYPE_CHECKING:
    from vaedeploy.engines.plan import Job
    from vaedeploy.values.reference import Reference


log = logging.getLogger(__name__)

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
    forms: Sequence[Target] = (),
    keep_fp32: Sequence[str] = (),
    scale: float | Sequence[float] | None = None,
    shift: float | Sequence[float] | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    name: str | None = None,
    force: bool = False,
    verify: bool = True,
    photos: str | Path | None = None,
    private: bool = False,
    profiles: Sequence[str] = (),
    profile_folder: str | Path | None = None,
    profile_backend: Backend | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Export a VAE to ONNX graphs, verify them against PyTorch, and put all of it into a bundle.

    >>> bundle = vd.export_vae("mse840k", out="mse840k")
    >>> bundle = vd.export_vae("mse840k", weights="my-finetune.safetensors", out="my-finetune", precision="fp16")

    vae: a preset's name, a hub repository ("owner/name"), the path of a diffusers folder or a weights file, or a
        ``Reference`` made of your own modules.
    out: the folder to make; by default, one in the current directory that has the VAE's name.
    weights: other weights for the architecture of a preset or folder; scale, shift: the latent contract; revision,
        subfolder: where in the hub. See ``load_reference``.
    name: the VAE's name in the bundle; by default the preset's, or that of the weights' file, folder or repository.
    precision: what the graphs that are run compute in: "fp32", "fp16" or "bf16". The portable graphs are always fp32.
    image_input: what the encoder takes: "float" for (B, N, H, W) float32 in [-1, 1], "uint8" for (B, H, W, N) uint8;
        N is 3 for RGB images, 4 for RGBA.
    rewrite: apply the exact rewrites, which save work and avoid overflow, and change results by rounding at most.
    forms: more forms of the graphs. "onnxruntime-cuda", in fp16 alone, has the fused operators of ONNX Runtime's CUDA
        provider. No CPU runs it: verify it on a GPU, ``verify_bundle(bundle, backend="onnxruntime-cuda")``.
    keep_fp32: names of nodes of the portable graphs that half precision leaves in float32, as ``bisect_bundle`` finds
        them. Engines are built with them, too.
    force: replace a bundle that is at ``out``.
    verify: compare the graphs with PyTorch in float64. Without that, the bundle is marked unverified. A warning is
        logged where the standard deviation of the photographs' scaled latents is far from 1.
    photos: a folder of photographs to verify on, instead of those that scikit-image carries. Opaque ones are given
        opacity where the VAE's images have it, see ``docs/verification.md``.
    private: keep only the name of the weights' file or folder in the bundle, not its place.
    profiles: GPU profiles to build engines for once the bundle is verified. profile_folder: where profiles of your own
        are. profile_backend: builds them instead of the backend that each profile names. See ``build_engines``.
    progress: reports how far each stage is, see ``Progress``.

    Raises VerificationError, which holds the report, where a limit is missed; the bundle is at ``out`` then, marked
    unverified. Raises BuildError where an engine cannot be built; the bundle is at ``out`` then, with the engines that
    could be. Whatever else is raised, nothing is left behind and what was at ``out`` is unchanged: InputError for an
    unknown precision, form or node, OutputError for an ``out`` that exists (without ``force``) or cannot be written to,
    ImageError for ``photos`` that cannot be read, BackendError where ONNX Runtime is not installed, ExportError where
    the modules cannot be traced, and what ``load_reference`` and ``build_engines`` raise before they begin.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}")
    _check_forms(forms, precision, rewrite)
    if name is not None and not (name.isprintable() and name.strip(". ") and not set(name) & set('/\\:*?"<>|')):
        raise InputError(f"name is {name!r}; it must be a name that a folder can have, such as my-vae")
    # Refuses bad weights before PyTorch is loaded, which takes seconds.
    refuse_bundles(vae, weights)
    source = find_source(vae, weights, revision=revision, subfolder=subfolder)
    jobs = _plan_builds(profiles, profile_folder, profile_backend)
    kept = tuple(as_list("keep_fp32", keep_fp32))
    if kept and {precision, *(job.profile.precision for job in jobs)} == {"fp32"}:
        raise InputError("keep_fp32 is for half precision, and everything here is fp32; leave it out")
    precisions = {precision if rewrite else "fp32", *(job.profile.precision for job in jobs)}
    calibrated = verify or "fp16" in precisions
    if calibrated:
        onnxruntime_cpu.load_library()  # to fail before the long work
    photographs = load_photos(photos, RGBA) if calibrated else []
    reference: Reference | None = None
    if out is None:
        out = name or known_name(source)
    if out is None:  # the weights give the name; a place that is known is checked before they are loaded
        reference = load_source(source, scale=scale, shift=shift, progress=progress)
        out = reference.name
    with create_bundle(out, force) as draft:
        reference = reference or load_source(source, scale=scale, shift=shift, progress=progress)
        if name is not None:
            reference = dataclasses.replace(reference, name=name)
        for job in jobs:
            job.profile.of_factor(reference.latent.factor)  # refuses a profile without a size for it
        if reference.latent.image_channels == RGB and any(map(has_opacity, photographs)):
            photographs = load_photos(photos, RGB)  # leaves out transparent ones, and says so
        contents = write_portable(reference, draft.path, image_input, progress)
        collect_garbage()
        manifest = _manifest(reference, precision, image_input, contents)
        if private:
            info = msgspec.structs.replace(manifest.vae, origin=manifest.vae.origin.private())
            manifest = msgspec.structs.replace(manifest, vae=info)
        given = scale is not None or shift is not None
        manifest = msgspec.structs.replace(manifest, contract_given=given, keep_fp32=kept)
        cases: tuple[GoldenCase, ...] = ()
        if verify:
            cases = compute_golden(reference, photographs, verification_shapes(reference.latent.factor), progress)
            if remark := spread_remark(cases, reference.latent, reference.origin):
                log.warning(remark)
            (draft.path / GOLDEN_NAME).write_bytes(encode_golden(cases, reference.identity))
        reference = None  # frees the weights: ONNX Runtime needs the memory
        collect_garbage()
        calibration = None
        if calibrated:
            calibration = calibrate(draft.path, photographs, manifest.latent, image_input, progress)
        factor = manifest.latent.factor
        applied = write_forms(draft.path, precision, calibration, rewrite, kept, tuple(forms), factor, progress)
        graphs, rows = graph_names(draft.path), rows_names(draft.path)
        manifest = msgspec.structs.replace(manifest, graphs=graphs, rows=rows, rewrites=applied)
        report = None
        if verify:
            looks = make_looks(manifest.latent.factor)
            report = verify_graphs(manifest, draft.path, cases, FRESH, looks, progress)
            (draft.path / REPORT).parent.mkdir()
            (draft.path / REPORT).write_bytes(report.to_json())
            manifest = msgspec.structs.replace(manifest, verification=summary(report))
        bundle = draft.finish(manifest)
    if report is not None and not report.passed:
        raise VerificationError(_verdict(bundle, report), report, bundle)
    if jobs:
        from vaedeploy.pipeline.build import build_planned

        return build_planned(bundle, jobs, progress=progress)
    return bundle


def refuse_bundles(*places: object) -> None:
    """Raise WeightsError where a place of weights is a bundle. A preset's name is none, as for ``find_source``."""
    for place in places:
        if isinstance(place, str | Path) and place not in preset_names() and is_bundle(Path(place)):
            raise WeightsError(
                f"{place} is a bundle, exported already; give what it was made from, which this shows: "
                f"vaedeploy inspect {place}"
            )


def _check_forms(forms: Sequence[Target], precision: Precision, rewrite: bool) -> None:
    for form in as_list("forms", forms):
        if form not in EXTRA_FORMS:
            raise InputError(f"forms has {form!r}; what can be added is: {', '.join(EXTRA_FORMS)}")
        if EXTRA_FORMS[form] not in (precision, "fp32") or not rewrite:
            raise InputError(
                f"the form {form} is made by rewrites, in {EXTRA_FORMS[form]}: choose that precision, and leave the "
                "rewrites on"
            )


def _plan_builds(profiles: Sequence[str], folder: str | Path | None, backend: Backend | None) -> tuple[Job, ...]:
    """The builds that ``profiles`` ask for, checked now so that they fail before the long work."""
    if not as_list("profiles", profiles):
        if backend is not None:
            raise InputError("profile_backend builds engines; give profiles too (--profile)")
        return ()
    from vaedeploy.engines.plan import plan_builds

    return plan_builds(profiles, backend=backend, folder=folder)


def _manifest(
    reference: Reference, precision: Precision, image_input: ImageInput, contents: dict[Part, str]
) -> Manifest:
    """The manifest, as far as it is known before the graphs are rewritten and verified."""
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
    failed = sum(not case.passed for case in report.cases)
    causes = "".join(f"\n- {verdict.sentence}" for verdict in find_verdicts(report) if not verdict.passed)
    return (
        f"bundle {bundle.path} failed its verification in {failed} of {counted(len(report.cases), 'case')} and is "
        f"marked unverified:{causes}\n"
        f"All cases are in {bundle.path / REPORT}. To find where it goes wrong, run: vaedeploy verify {bundle.path}"
    )
