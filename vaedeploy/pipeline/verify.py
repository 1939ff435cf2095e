"""A bundle against PyTorch again: what ``vaedeploy verify`` does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vaedeploy.bundle import Bundle, edit_bundle
from vaedeploy.bundle.golden import NAME as GOLDEN_NAME
from vaedeploy.bundle.golden import GoldenCase, read_golden, write_golden
from vaedeploy.errors import InputError, OutputError, WeightsError
from vaedeploy.images.photos import load_photos
from vaedeploy.pipeline.export import FRESH, REPORT
from vaedeploy.runtime.backends import ENGINES, find_candidates
from vaedeploy.system.progress import Progress, silent
from vaedeploy.verify import reference as golden
from vaedeploy.verify.backend import _Cases, _Graph, _judge_engine, _judge_graphs, _Torch
from vaedeploy.verify.graphs import judge
from vaedeploy.verify.looks import find_look
from vaedeploy.verify.report import Report, summary
from vaedeploy.verify.shapes import verification_shapes

if TYPE_CHECKING:
    from vaedeploy.values.reference import Reference


def verify_backend(
    bundle: Bundle | str | Path,
    backend: str,
    *,
    profile: str | None = None,
    device: int = 0,
    reference: Reference | None = None,
    weights: str | Path | None = None,
    photos: str | Path | None = None,
    page: str | Path | None = None,
    progress: Progress = silent,
) -> Report:
    """Compare what ``backend`` computes on this machine with the reference, and note the verdict with the engines.

    Each engine runs at the minimum, the optimum and the maximum of each of its optimisation profiles; graphs at the
    sizes that every bundle is verified at. Inputs are photographs and their latents. profile: the engines of that
    profile alone. device: the CUDA device. reference: the VAE in PyTorch, weights: where its weights are; it is run in
    float32 on the GPU. Without either, the bundle's float32 graph, verified against PyTorch, is run on the CPU.

    page: a folder for an HTML page that shows it, see ``report.write_report``, which is checked before any work.

    Warns (UnnotedVerdictWarning) where the bundle cannot be written to. Raises InputError for a backend or profile that
    there is not, BackendError and EngineError where it does not answer here, BundleError where the bundle itself is not
    verified and nothing else could be compared with, and PageError, which holds the report, where the page cannot be
    written once the verdict is there.
    """
    if page is not None:
        from vaedeploy.page import check_folder

        check_folder(page)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if backend not in ENGINES and profile is not None:
        raise InputError(f"profiles are for engines; {backend} runs graphs. Leave the profile out")
    candidates = find_candidates(bundle, backend, device, profile=profile)
    if weights is not None and reference is None:
        from vaedeploy.source import reload_reference

        reference = reload_reference(bundle.manifest.vae.origin, bundle.manifest.latent, weights, progress)
    if reference is not None and reference.identity != bundle.manifest.vae.identity:
        raise WeightsError(f"bundle {bundle.path} was made from another VAE than {reference.name}")
    look = find_look(bundle.manifest)
    truth = _Cases(bundle, _Graph(bundle) if reference is None else _Torch(reference, device), load_photos(photos))
    if backend in ENGINES:
        engines = [name for candidate in candidates for name in candidate.engines]
        verdicts = {name: _judge_engine(bundle, name, truth, look, device, progress) for name in engines}
        rows = tuple(case for verdict in verdicts.values() for case in verdict.cases)
    else:
        # The first alone: what runs again what half precision could not hold is the portable graph, verified as it is.
        verdicts, rows = {}, _judge_graphs(bundle, candidates[0], truth, look, progress)
    report = Report(bundle.manifest.precision, truth.name, backend, rows)
    noted = {
        name: msgspec.structs.replace(bundle.manifest.engines[name], verification=summary(verdict))
        for name, verdict in verdicts.items()
    }
    with noting(), edit_bundle(bundle) as edit:
        edit.put(files={f"report/{backend}.json": report.to_json()}, engines=noted)
    if page is not None:
        from vaedeploy.verify.looks import Looks
        from vaedeploy.verify.page import write_verification

        assert isinstance(look, Looks)  # else that import failed
        write_verification(bundle.path, report, look, page)
    return report


class UnnotedVerdictWarning(UserWarning):
    """A verdict that could not be written into the bundle, such as one that may only be read."""


@contextmanager
def noting() -> Iterator[None]:
    """A verdict is written into its bundle inside. Where that cannot be done, warns (UnnotedVerdictWarning): the
    verdict is told all the same.
    """
    try:
        yield
    except OutputError as error:
        # Of the generator, contextlib, the function that verifies, and whoever called that.
        warnings.warn(f"the verdict is not noted in the bundle: {error}", UnnotedVerdictWarning, stacklevel=4)


KEPT = f"PyTorch in float64, computed earlier and kept in {GOLDEN_NAME}"


def verify_bundle(
    bundle: Bundle | str | Path,
    *,
    reference: Reference | None = None,
    weights: str | Path | None = None,
    photos: str | Path | None = None,
    page: str | Path | None = None,
    progress: Progress = silent,
) -> Report:
    """Compare a bundle's graphs with PyTorch again, and mark the bundle verified or not.

    reference: the VAE in PyTorch; weights: where its weights are now. Without either, the outputs that PyTorch gave in
    float64 when the bundle was made are used, and where there are none, or ``photos`` are given, the source that
    the bundle names. ``report.reference`` says which it was; ``report.passed`` is the verdict. page: a folder for an
    HTML page that shows it, see ``report.write_report``, which is checked before any work. progress: is told how many
    cases are done, see ``Progress``.

    Warns (UnnotedVerdictWarning) where the bundle cannot be written to, such as one that may only be read. Raises
    WeightsError where the weights are not the ones that the bundle was made from, and PageError, which holds the
    report, where the page cannot be written once the verdict is there.
    """
    if page is not None:
        from vaedeploy.page import check_folder

        check_folder(page)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest = bundle.manifest
    files: dict[str, bytes] = {}
    kept = GOLDEN_NAME in manifest.files
    shapes = verification_shapes(manifest.latent.factor)
    cases: tuple[GoldenCase, ...] = ()
    origin = KEPT
    if kept and reference is None and weights is None and photos is None:
        cases = read_golden(bundle.file(GOLDEN_NAME).read_bytes(), manifest.vae.identity)
    if {case.name for case in cases} != {shape.name for shape in shapes}:
        from vaedeploy.source import reload_reference

        reference = reference or reload_reference(manifest.vae.origin, manifest.latent, weights, progress)
        _check_identity(bundle, reference)
        cases, origin = golden.compute_golden(reference, load_photos(photos), shapes, progress), FRESH
        files[GOLDEN_NAME] = write_golden(cases, manifest.vae.identity)
    look = find_look(manifest)
    report = judge(manifest, bundle.path, cases, origin, progress, look)
    with noting():
        bundle.update(verification=summary(report), files=files | {REPORT: report.to_json()})
    if page is not None:
        from vaedeploy.verify.looks import Looks
        from vaedeploy.verify.page import write_verification

        assert isinstance(look, Looks)  # else that import failed
        write_verification(bundle.path, report, look, page)
    return report


def _check_identity(bundle: Bundle, reference: Reference) -> None:
    expected = bundle.manifest.vae.identity
    if reference.identity != expected:
        raise WeightsError(
            f"bundle {bundle.path} was made from another VAE: its identity is {expected}, that of the given one is "
            f"{reference.identity}. Give the weights that it was made from, or export it again"
        )
