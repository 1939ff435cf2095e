"""A bundle against PyTorch again, or a backend of this machine against the bundle: ``vaedeploy verify``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vaedeploy.bundle import Bundle, as_bundle, edit_bundle
from vaedeploy.bundle.encoding import check_identity
from vaedeploy.bundle.golden import NAME as GOLDEN
from vaedeploy.bundle.golden import GoldenCase, decode_golden, encode_golden
from vaedeploy.bundle.stored import is_bundle
from vaedeploy.errors import BackendError, BundleError, InputError, OutputError, WeightsError
from vaedeploy.images.photos import load_photos
from vaedeploy.pipeline.export import FRESH, REPORT
from vaedeploy.pipeline.pace import measure_pace
from vaedeploy.runtime import openvino
from vaedeploy.runtime.backends import ENGINES, find_candidates
from vaedeploy.runtime.candidate import Settings
from vaedeploy.runtime.verdicts import report_name
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.presets import preset_names
from vaedeploy.verify.backend import (
    CasesAtSizes,
    GraphTruth,
    TorchTruth,
    Truth,
    check_torch,
    verify_engine,
    verify_runners,
)
from vaedeploy.verify.graphs import verify_graphs
from vaedeploy.verify.looks import Looks, make_looks
from vaedeploy.verify.record import record
from vaedeploy.verify.reference import compute_golden
from vaedeploy.verify.report import Case, Report, summary
from vaedeploy.verify.shapes import verification_shapes

if TYPE_CHECKING:
    from vaedeploy.values.kinds import Precision
    from vaedeploy.values.reference import Reference

log = logging.getLogger(__name__)

KEPT = f"PyTorch in float64, computed earlier and kept in {GOLDEN}"


class UnnotedVerdictWarning(UserWarning):
    """A verdict could not be written into the bundle, for example because the bundle is read-only."""


def verify_bundle(
    bundle: Bundle | str | Path,
    *,
    backend: str | None = None,
    precision: Precision | None = None,
    profile: str | None = None,
    device: int | str = 0,
    reference: Reference | None = None,
    weights: str | Path | None = None,
    photos: str | Path | None = None,
    page: str | Path | None = None,
    note: bool = True,
    identity: str | None = None,
    progress: Progress = silent,
) -> Report:
    """Compare a bundle with PyTorch again, and write the verdict into it.

    >>> vd.verify_bundle("mse840k").passed                             # the graphs, on the CPU, against float64
    >>> vd.verify_bundle("mse840k", backend="tensorrt-rtx").passed     # its engines, on this machine's GPU

    backend: None compares the bundle's graphs, on the CPU, with what PyTorch gives in float64, and marks the bundle
        verified or not. A backend's name compares what that backend computes on this machine: each engine at the
        minimum, optimum and maximum of each of its optimisation profiles, or graphs at the sizes at which every bundle
        is verified. The verdict is then noted with the engines.
    precision: what the backend computes in, see ``VAE``. profile: only the engines of that GPU profile. device: the
        number of the CUDA device, or OpenVINO's name of a device.
    reference: the VAE in PyTorch; weights: where its weights are now, or a preset's name for its own. Without either,
        graphs are compared with the outputs that PyTorch gave when the bundle was made (or, with other ``photos``, with
        the source that the bundle names), and a backend is compared with the bundle's float32 graph on the CPU, which
        must be verified. With one of them, a backend is compared with PyTorch in float32 on the GPU.
    photos: a folder of photographs to verify on, instead of those that scikit-image carries.
    page: a folder for an HTML page that shows the verification; whether it can be written is checked first.
    note: whether the verdict is written into the bundle. False leaves the bundle as it is, for CI.
    identity: the identity of the VAE that the bundle must hold, as ``vaedeploy inspect`` shows it; None for any. A swap
        also replaces the outputs that PyTorch gave, so a bundle whose VAE was swapped passes without ``identity``.
    progress: reports how many cases are done, see ``Progress``.

    ``report.passed`` is the verdict, and ``report.reference`` says what the bundle was compared with. Of graphs that
    failed, ``report.bisection`` says where they go wrong, as ``bisect_bundle`` does, if the packages that it needs are
    installed.

    Warns (UnnotedVerdictWarning) where the bundle cannot be written to. Raises InputError for an unknown backend or
    profile, for ``reference`` with ``weights`` and for an incomplete ``identity``, BackendError and EngineError where
    the backend does not work here, WeightsError where the weights are not those that the bundle was made from, and
    BundleError where the bundle is damaged, holds a VAE of another identity, or nothing is left to compare with. A page
    that cannot be written after the verdict raises PageError, which holds the report.
    """
    if page is not None:
        from vaedeploy.page import check_folder

        check_folder(page)
    if reference is not None and weights is not None:
        raise InputError("reference and weights both say what to compare with; give one of them")
    if backend is None and (profile is not None or precision is not None):
        raise InputError("profile and precision say how a backend computes; give backend= too")
    bundle = as_bundle(bundle).current()
    check_identity(bundle.manifest, bundle.path, identity)
    if weights is not None:
        _refuse_bundle(weights, bundle)
    looks = make_looks(bundle.manifest.latent.factor)
    if backend is None:
        report = _verify_graphs(bundle, reference, weights, photos, looks, note, progress)
    else:
        asked = Settings(backend=backend, precision=precision, profile=profile, device=device)
        report = _verify_backend(bundle, asked, reference, weights, photos, looks, note, progress)
    if backend is None and not report.passed:
        report = _bisected(bundle, report, progress)
    if page is not None:
        from vaedeploy.verify.page import write_verification

        write_verification(bundle.path, report, looks.pictures if looks else (), page)
    return report


def _bisected(bundle: Bundle, report: Report, progress: Progress) -> Report:
    """The report with where failing graphs go wrong; unchanged where that cannot be found out here."""
    try:
        from vaedeploy.verify.bisect import bisect_bundle

        noted = bundle.current()  # with the golden cases, where the verification wrote them
        return msgspec.structs.replace(report, bisection=bisect_bundle(noted, report, progress=progress))
    except (ImportError, BundleError, BackendError) as error:  # the verdict stands without it
        log.info("where the graphs go wrong was not found: %s", error)
        return report


def _verify_graphs(
    bundle: Bundle,
    reference: Reference | None,
    weights: str | Path | None,
    photos: str | Path | None,
    looks: Looks | None,
    note: bool,
    progress: Progress,
) -> Report:
    manifest = bundle.manifest
    shapes = verification_shapes(manifest.latent.factor)
    cases: tuple[GoldenCase, ...] = ()
    compared_with, files = KEPT, {}
    if reference is None and weights is None and photos is None and GOLDEN in manifest.files:
        cases = decode_golden(bundle.read(GOLDEN), manifest.vae.identity)
    if {case.name for case in cases} != {shape.name for shape in shapes}:
        photographs = load_photos(photos, manifest.latent.image_channels)
        reference = _checked_reference(bundle, reference, weights, progress)
        cases, compared_with = compute_golden(reference, photographs, shapes, progress), FRESH
        files[GOLDEN] = encode_golden(cases, manifest.vae.identity)
    report = verify_graphs(manifest, bundle.path, cases, compared_with, looks, progress)
    if note:
        with warn_if_not_noted(), edit_bundle(bundle) as edit:
            edit.put(verification=summary(report), files=files | {REPORT: report.to_json()})
    return report


def _verify_backend(
    bundle: Bundle,
    asked: Settings,
    reference: Reference | None,
    weights: str | Path | None,
    photos: str | Path | None,
    looks: Looks | None,
    note: bool,
    progress: Progress,
) -> Report:
    candidates, backend, device = find_candidates(bundle, asked), str(asked.backend), asked.cuda_device
    source: Truth
    if reference is None and weights is None:
        source = GraphTruth(bundle)
    else:
        check_torch(device)
        source = TorchTruth(_checked_reference(bundle, reference, weights, progress), device)
    channels = bundle.manifest.latent.image_channels
    truth = CasesAtSizes(source, load_photos(photos, channels), channels)
    verdicts: dict[str, Report] = {}
    cases: tuple[Case, ...] = ()
    if backend in ENGINES:
        for name in (engine for candidate in candidates for engine in candidate.engines):
            verdicts[name] = verify_engine(bundle, name, truth, looks, device, progress)
            cases += verdicts[name].cases
    else:
        # Only the first: the second, which reruns in float32 what overflowed in half precision, is the portable graph.
        cases = verify_runners(bundle, candidates[0], truth, looks, progress)
    precision = candidates[0].precision if backend == openvino.NAME else bundle.manifest.precision
    report = record(bundle.manifest, precision, truth.name, backend, cases, device=device)
    if backend == openvino.NAME and report.passed:
        report = msgspec.structs.replace(report, pace=measure_pace(bundle, candidates[0]))
    if not note:
        return report
    noted = {
        name: msgspec.structs.replace(bundle.manifest.engines[name], verification=summary(verdict))
        for name, verdict in verdicts.items()
    }
    with warn_if_not_noted(), edit_bundle(bundle) as edit:
        edit.put(files={_report_name(asked, report): report.to_json()}, engines=noted)
    return report


def _report_name(asked: Settings, report: Report) -> str:
    """The file of a backend's report: one for each profile, and for OpenVINO for each precision and kind of CPU."""
    if report.backend == openvino.NAME:
        return report_name(openvino.NAME, report.precision, openvino.processor(asked.openvino_device))
    return report_name(report.backend if asked.profile is None else f"{report.backend}.{asked.profile}")


def _checked_reference(
    bundle: Bundle, reference: Reference | None, weights: str | Path | None, progress: Progress
) -> Reference:
    """The given reference, or the one that the bundle was made from. Raises WeightsError where it is another VAE."""
    if reference is None:
        from vaedeploy.source import reload_reference

        reference = reload_reference(bundle.manifest.vae.origin, bundle.manifest.latent, weights, progress)
    expected = bundle.manifest.vae.identity
    if reference.identity != expected:
        raise WeightsError(
            f"bundle {bundle.path} was made from another VAE: its identity is {expected}, that of the given one is "
            f"{reference.identity}. Give the weights that it was made from, or export it again"
        )
    return reference


def _refuse_bundle(weights: str | Path, bundle: Bundle) -> None:
    """Raise WeightsError where ``weights`` is a bundle. Its identity tells what its weights would."""
    if is_bundle(Path(weights)):
        identity = Bundle.open(weights, verify_hashes=False).manifest.vae.identity
        if str(weights) in preset_names():
            remedy = f"In a folder without {weights}, --weights {weights} means the preset"
        else:
            remedy = f"Or give the weights that it was made from, which this shows: vaedeploy inspect {weights}"
        raise WeightsError(
            f"{weights} is a bundle, and not weights for PyTorch. To find out whether {bundle.path} holds the same "
            f"VAE, run: vaedeploy verify {bundle.path} --identity {identity}. {remedy}"
        )


@contextmanager
def warn_if_not_noted() -> Iterator[None]:
    """Context in which a verdict is written into its bundle. A failure to write becomes an UnnotedVerdictWarning, so
    that the verdict itself still reaches the caller.
    """
    try:
        yield
    except OutputError as error:
        # The levels are this generator, contextlib, _verify_*, verify_bundle and its caller.
        warnings.warn(f"the verdict is not noted in the bundle: {error}", UnnotedVerdictWarning, stacklevel=5)
