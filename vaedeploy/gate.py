"""The gate on what the GPU in this machine computes: engines, or ONNX Runtime's CUDA provider, against the
reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy import golden
from vaedeploy.bundle import Bundle, edit_bundle
from vaedeploy.errors import BundleError, InputError, WeightsError
from vaedeploy.golden import GoldenCase
from vaedeploy.judge import find_look, prepare_photo
from vaedeploy.manifest import PARTS, Part, Precision
from vaedeploy.photos import Shape, crop_batch, load_photos
from vaedeploy.progress import Progress, silent
from vaedeploy.runtime.backends import ENGINES, Candidate, find_candidates, float32_form
from vaedeploy.runtime.onnxruntime_cpu import Session
from vaedeploy.shapes import CORNERS
from vaedeploy.verify import Case, Report, summary, verify_cases

if TYPE_CHECKING:
    from vaedeploy.source import Reference

__all__ = ["verify_backend"]

GRAPH = "the float32 graph on the CPU, which was verified against PyTorch"
TORCH = "PyTorch in float32 on the GPU"


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

    Engines run at the minimum, the optimum and the maximum of each of their optimisation profiles; graphs at the sizes
    that every bundle is verified at. Inputs are photographs and their latents. profile: the engines of that profile
    alone. device: the CUDA device. reference: the VAE in PyTorch, weights: where its weights are; it is run in float32
    on the GPU. Without either, the bundle's float32 graph, verified against PyTorch, is run on the CPU.

    page: a folder for an HTML page that shows it, see ``report.write_report``.

    Raises InputError for a backend or profile that there is not, BackendError and EngineError where it does not answer
    here, BundleError where the bundle itself is not verified and nothing else could be compared with.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    candidates = find_candidates(bundle, backend, device, profile=profile)
    if backend not in ENGINES and profile is not None:
        raise InputError(f"profiles are for engines; {backend} runs graphs. Leave the profile out")
    if weights is not None and reference is None:
        from vaedeploy.source import reload_reference

        reference = reload_reference(bundle.manifest.vae.origin, bundle.manifest.latent, weights, progress)
    if reference is not None and reference.identity != bundle.manifest.vae.identity:
        raise WeightsError(f"bundle {bundle.path} was made from another VAE than {reference.name}")
    truth: _Truth = _Graph(bundle) if reference is None else _Torch(reference, device)
    rows: list[Case] = []
    judged: list[tuple[Candidate, Report]] = []
    look = find_look(bundle.manifest)
    for candidate in candidates:
        if backend not in ENGINES and candidate is not candidates[0]:
            continue  # what runs again what half precision could not hold is the portable graph, verified as it is
        cases = list(_cases(bundle, candidate, truth, load_photos(photos), progress))
        found = verify_cases(
            cases,
            *_callables(bundle, candidate),
            precision=_limits(bundle, candidate),
            form=f"{backend} {candidate.precision}",
            look=look,
            progress=progress,
        )
        rows += found
        judged.append((candidate, Report(candidate.precision, truth.name, backend, found)))
    report = Report(bundle.manifest.precision, truth.name, backend, tuple(rows))
    _note(bundle, judged, report)
    if page is not None:
        from vaedeploy.report import Looks, verification_document, write_report

        assert isinstance(look, Looks)  # else that import failed
        write_report(verification_document(bundle.path.resolve().name, report, look.pictures), page)
    return report


class _Truth(Protocol):
    """What is compared with: photo (B, H, W, 3) uint8 -> latents by name, latent -> image, as ``GoldenCase`` has
    them.
    """

    name: str

    def encode(self, photo: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]: ...
    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]: ...


class _Graph:
    """The bundle's float32 graphs on the CPU."""

    name = GRAPH

    def __init__(self, bundle: Bundle) -> None:
        if not bundle.verified:
            raise BundleError(
                f"bundle {bundle.path} is not verified, so nothing can be compared with it. Run: vaedeploy "
                f"verify {bundle.path}"
            )
        self._bundle = bundle

    def _session(self, part: Part) -> Session:
        return Session(self._bundle.graph(part, float32_form(self._bundle)))

    def encode(self, photo: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        session = self._session("encoder")
        given = prepare_photo(self._bundle.manifest, photo)
        names = session.outputs
        return dict(zip(names, session.run(names, {session.inputs[0]: given}), strict=True))

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self._session("decoder").run(["image"], {"latent": latent})[0]
        return image


class _Torch:
    """PyTorch's modules on the GPU, with float32 products that are not rounded to TF32."""

    name = TORCH

    def __init__(self, reference: Reference, device: int) -> None:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._reference = reference
        self._device = torch.device("cuda", device)

    def encode(self, photo: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        from vaedeploy.runtime.arrays import to_float

        return golden.diffusion_space(self._run(self._reference.encoder, to_float(photo)), self._reference.latent)

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        raw = golden.model_space(latent, self._reference.latent).astype(np.float32)
        return self._run(self._reference.decoder, raw)[0].astype(np.float32)

    def _run(self, module: Any, value: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        import torch

        try:
            with torch.no_grad():
                made = module.to(self._device)(torch.from_numpy(value).to(self._device))
            outputs = made if isinstance(made, tuple) else (made,)
            return tuple(output.double().cpu().numpy() for output in outputs)
        finally:
            module.to("cpu")


def _cases(
    bundle: Bundle, candidate: Candidate, truth: _Truth, photos: list[NDArray[np.uint8]], progress: Progress
) -> Iterator[GoldenCase]:
    shapes = _shapes(bundle, candidate)
    for done, shape in enumerate(shapes):
        progress("Computing the reference", done, len(shapes))
        photo = crop_batch(photos, shape)
        latents = truth.encode(photo)
        image = truth.decode(next(iter(latents.values())))
        yield GoldenCase(shape.name, photo, latents, image, round_trip=False)
    progress("Computing the reference", len(shapes), len(shapes))


def _shapes(bundle: Bundle, candidate: Candidate) -> list[Shape]:
    """Each corner of each optimisation profile of the candidate's engines, once."""
    from vaedeploy.photos import verification_shapes

    if candidate.backend not in ENGINES:
        return list(verification_shapes(bundle.manifest.latent.factor))
    corners = {
        shape.at(corner): f"{name} {corner}"
        for engine in candidate.engines
        for name, shape in bundle.manifest.engines[engine].identity.shapes.items()
        for corner in CORNERS
    }
    return [Shape(name, *size, False) for size, name in corners.items()]


def _callables(bundle: Bundle, candidate: Candidate) -> tuple[Any, Any]:
    halves = {part: candidate.open(part) for part in PARTS}

    def run(part: Part, value: NDArray[Any]) -> dict[str, Any]:
        half = halves[part]
        return dict(zip(half.outputs, half.run(half.outputs, {half.inputs[0]: value}), strict=True))

    return lambda photo: run("encoder", prepare_photo(bundle.manifest, photo)), lambda latent: run("decoder", latent)


def _limits(bundle: Bundle, candidate: Candidate) -> Precision:
    """TF32 rounds what convolutions read to 10 bits, as fp16 does."""
    rounded = any(bundle.manifest.engines[name].identity.options.get("tf32") for name in candidate.engines)
    return "fp16" if rounded and candidate.precision == "fp32" else candidate.precision


def _note(bundle: Bundle, judged: Sequence[tuple[Candidate, Report]], report: Report) -> None:
    """Put the verdict into the bundle: the report, and its summary with each engine."""
    noted = {
        name: msgspec.structs.replace(bundle.manifest.engines[name], verification=summary(verdict))
        for candidate, verdict in judged
        for name in candidate.engines
    }
    with edit_bundle(bundle) as edit:
        edit.put(files={f"report/{report.backend}.json": report.to_json()}, engines=noted)
