"""The stages joined: what ``vaedeploy export`` and ``vaedeploy verify`` do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from numpy.typing import NDArray

from vaedeploy import __version__, golden
from vaedeploy.bundle import Bundle, create_bundle
from vaedeploy.errors import ExportError, VerificationError, WeightsError
from vaedeploy.manifest import Form, ImageInput, Manifest, Part, VaeInfo, Verification
from vaedeploy.memory import collect_garbage
from vaedeploy.photos import load_photos, verification_shapes
from vaedeploy.progress import Progress, silent
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.runtime.arrays import to_float
from vaedeploy.verify import Case, Report, verify_cases

if TYPE_CHECKING:
    from vaedeploy.source import Reference

PARTS: tuple[Part, ...] = ("encoder", "decoder")
REPORT = "report/report.json"
PORTABLE_CASES = ("odd",)
"""The cases that the portable graphs run as well. They are engines' starting point and never run by the runtime, so
one small case with every size unlike is enough; ONNX Runtime would miss the fp32 limit on them at 512x512.
"""

FRESH = "PyTorch in float64"
KEPT = f"PyTorch in float64, computed earlier and kept in {golden.NAME}"


def export_vae(
    vae: str | Path | Reference,
    *,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    image_input: ImageInput = "float",
    scale: float | None = None,
    shift: float | None = None,
    force: bool = False,
    verify: bool = True,
    photos: str | Path | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Take a VAE from weights to a verified bundle.

    vae: a preset's name, a path to a VAE of its own, or a ``Reference`` of your own modules.
    out: where the bundle goes; the VAE's name in the current directory unless given.
    weights, scale, shift: see ``load_reference``. image_input: what the encoder takes, see ``Graph``.
    force: replace a bundle that is there. verify: prove it; without, it is marked unverified.
    photos: a folder of photographs to verify on, instead of those that scikit-image carries.

    Raises VerificationError, with its report, where a limit is missed: the bundle is there then, marked unverified.
    Whatever else is raised, nothing is left behind and what was at ``out`` is as it was.
    """
    if verify:
        onnxruntime_cpu.load_library()  # to fail before the long work, not after it
    pictures = load_photos(photos) if verify else []
    reference: Reference | None = None
    if out is None:  # the place is known only once the VAE is; otherwise it is checked first
        reference = _reference(vae, weights, scale, shift, progress)
        out = reference.name
    with create_bundle(out, force) as draft:
        reference = reference or _reference(vae, weights, scale, shift, progress)
        manifest = _manifest(reference, _write_graphs(reference, draft.path, image_input, progress), image_input)
        report = None
        if verify:
            cases = golden.compute_golden(reference, pictures, verification_shapes(reference.latent.factor), progress)
            (draft.path / golden.NAME).write_bytes(golden.write_golden(cases, reference.identity))
            reference = None  # and with it the weights: ONNX Runtime needs the memory
            report = _judge(manifest, draft.path, cases, FRESH, progress)
            (draft.path / REPORT).parent.mkdir()
            (draft.path / REPORT).write_bytes(report.to_json())
            manifest = msgspec.structs.replace(manifest, verification=_summary(report))
        bundle = draft.finish(manifest)
    if report is not None and not report.passed:
        raise VerificationError(_verdict(bundle, report), report)
    return bundle


def verify_bundle(
    bundle: Bundle | str | Path,
    *,
    reference: Reference | None = None,
    weights: str | Path | None = None,
    photos: str | Path | None = None,
    progress: Progress = silent,
) -> Report:
    """Compare a bundle's graphs with PyTorch again, and mark the bundle verified or not.

    reference: the VAE in PyTorch; weights: where its weights are now. Without either, the outputs that PyTorch gave in
    float64 when the bundle was made are used, and where there are none, or ``photos`` are given, the source that
    the bundle names. ``report.reference`` says which it was; ``report.passed`` is the verdict.

    Raises WeightsError where the weights are not the ones that the bundle was made from.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest = bundle.manifest
    files: dict[str, bytes] = {}
    kept = golden.NAME in manifest.files
    shapes = verification_shapes(manifest.latent.factor)
    cases: tuple[golden.GoldenCase, ...] = ()
    origin = KEPT
    if kept and reference is None and weights is None and photos is None:
        cases = golden.read_golden(bundle.file(golden.NAME).read_bytes(), manifest.vae.identity)
    if {case.name for case in cases} != {shape.name for shape in shapes}:
        from vaedeploy.source import reload_reference

        reference = reference or reload_reference(manifest.vae.origin, manifest.latent, weights, progress)
        _check_identity(bundle, reference)
        cases, origin = golden.compute_golden(reference, load_photos(photos), shapes, progress), FRESH
        files[golden.NAME] = golden.write_golden(cases, manifest.vae.identity)
    report = _judge(manifest, bundle.path, cases, origin, progress)
    bundle.update(verification=_summary(report), files=files | {REPORT: report.to_json()})
    return report


def _reference(
    vae: str | Path | Reference,
    weights: str | Path | None,
    scale: float | None,
    shift: float | None,
    progress: Progress,
) -> Reference:
    from vaedeploy.source import Reference, load_reference

    if not isinstance(vae, Reference):
        return load_reference(vae, weights, scale=scale, shift=shift, progress=progress)
    if (weights, scale, shift) != (None, None, None):
        raise WeightsError(
            "a Reference has its weights and its latent contract already; give no weights, scale or shift"
        )
    return vae


def _check_identity(bundle: Bundle, reference: Reference) -> None:
    expected = bundle.manifest.vae.identity
    if reference.identity != expected:
        raise WeightsError(
            f"bundle {bundle.path} was made from another VAE: its identity is {expected}, that of the given one is "
            f"{reference.identity}. Give the weights that it was made from, or export it again"
        )


def _write_graphs(
    reference: Reference, folder: Path, image_input: ImageInput, progress: Progress
) -> dict[Part, dict[Form, str]]:
    """Trace, rewrite, check and write both parts; returns the manifest's table of them."""
    import onnx

    from vaedeploy.export import trace_graph
    from vaedeploy.graph import load_graph, release_weights, save_form, save_graph
    from vaedeploy.rewrite import rewrite_graph

    graphs: dict[Part, dict[Form, str]] = {}
    for done, part in enumerate(PARTS):
        progress("Exporting to ONNX", done, len(PARTS))
        names: dict[Form, str] = {"portable": f"{part}.onnx", "onnxruntime": f"{part}.ort.onnx"}
        traced = trace_graph(reference, part, image_input=image_input)
        save_graph(traced, folder / names["portable"])
        release_weights(traced)
        portable = load_graph(folder / names["portable"], part)
        save_form(rewrite_graph(portable), folder / names["onnxruntime"])
        for name in names.values():
            try:
                onnx.checker.check_model(folder / name, full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
                raise ExportError(f"the exporter wrote a faulty graph, {name}: {error}") from error
        graphs[part] = names
    progress("Exporting to ONNX", len(PARTS), len(PARTS))
    collect_garbage()
    return graphs


class _OneSession:
    """Runs the graphs in a folder, holding one of them at a time: two full-size ones need not be in memory at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.session: onnxruntime_cpu.Session | None = None

    def run(self, graph: str, value: NDArray[Any]) -> dict[str, NDArray[Any]]:
        if self.session is None or self.session.graph != self.folder / graph:
            self.session = None
            self.session = onnxruntime_cpu.Session(self.folder / graph)
        names = self.session.outputs
        return dict(zip(names, self.session.run(names, {self.session.inputs[0]: value}), strict=True))


def _judge(
    manifest: Manifest,
    folder: Path,
    cases: Sequence[golden.GoldenCase],
    origin: str,
    progress: Progress,
) -> Report:
    """The form that the runtime uses at every case, and the portable form at ``PORTABLE_CASES``."""
    collect_garbage()
    runner, graphs = _OneSession(folder), manifest.graphs

    def verified(form: Form, chosen: Sequence[golden.GoldenCase], tell: Progress) -> tuple[Case, ...]:
        prepare: Callable[[Any], Any] = to_float if manifest.image_input == "float" else lambda photo: photo
        return verify_cases(
            chosen,
            lambda photo: runner.run(graphs["encoder"].get(form, graphs["encoder"]["portable"]), prepare(photo)),
            lambda latent: runner.run(graphs["decoder"].get(form, graphs["decoder"]["portable"]), latent),
            precision=manifest.precision,
            form=form,
            progress=tell,
        )

    portable = [case for case in cases if case.name in PORTABLE_CASES]
    rows = verified("portable", portable, silent) + verified("onnxruntime", cases, progress)
    return Report(manifest.precision, origin, onnxruntime_cpu.NAME, rows)


def _manifest(reference: Reference, graphs: dict[Part, dict[Form, str]], image_input: ImageInput) -> Manifest:
    return Manifest(
        vaedeploy=__version__,
        vae=VaeInfo(reference.name, reference.identity, reference.architecture, reference.licence, reference.origin),
        latent=reference.latent,
        image_input=image_input,
        precision="fp32",
        graphs=graphs,
    )


def _summary(report: Report) -> Verification:
    return Verification(report.passed, report.reference, report.backend, report.worst, len(report.cases))


def _verdict(bundle: Bundle, report: Report) -> str:
    failed = [case for case in report.cases if not case.passed]
    first = failed[0]
    return (
        f"bundle {bundle.path} failed its verification in {len(failed)} of {len(report.cases)} cases and is marked "
        f"unverified. First: {first.part}, {first.name}, {first.output}: {'; '.join(first.failures)}. "
        f"All of them: {bundle.path / REPORT}"
    )
