"""What a backend computes on this machine, engines or graphs, against PyTorch or the bundle's verified graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.golden import GoldenCase
from vaedeploy.errors import BackendError, BundleError
from vaedeploy.images.photos import crop_batch
from vaedeploy.images.pixels import to_float
from vaedeploy.runtime.backends import Candidate, Runner, float32_form, open_engines
from vaedeploy.runtime.onnxruntime_cpu import Session
from vaedeploy.runtime.routes import Half
from vaedeploy.system.progress import Progress
from vaedeploy.values.kinds import PARTS, Part, Precision
from vaedeploy.values.shapes import CORNERS
from vaedeploy.verify.cases import verify_cases
from vaedeploy.verify.graphs import prepare_photo
from vaedeploy.verify.looks import Looks
from vaedeploy.verify.reference import diffusion_space, model_space
from vaedeploy.verify.report import Case, Report
from vaedeploy.verify.shapes import verification_shapes

if TYPE_CHECKING:
    from vaedeploy.values.reference import Reference


GRAPH = "the float32 graph on the CPU, which was verified against PyTorch"

TORCH = "PyTorch in float32 on the GPU"


def verify_engine(
    bundle: Bundle, name: str, truth: CasesAtSizes, looks: Looks | None, device: int, progress: Progress
) -> Report:
    """Run each optimisation profile of one engine, and no other, at its corners."""
    info = bundle.manifest.engines[name]
    identity = info.identity
    # TF32 rounds what convolutions read to 10 bits, as fp16 does.
    limits: Precision = "fp16" if identity.precision == "fp32" and identity.options.get("tf32") else identity.precision
    rows: list[Case] = []
    for index, (sizes, shape) in enumerate(identity.shapes.items()):
        corners = list(dict.fromkeys(shape.at(corner) for corner in CORNERS))
        cases = [truth.at(size, f"{sizes} of {info.profile}", progress) for size in corners]
        session = open_engines(Half(bundle, info.part, identity.backend, (name,), only=index), device)
        encode, decode = _calls(bundle, {info.part: session})
        form = f"{info.profile} {identity.backend} {identity.precision}"
        rows += verify_cases(cases, encode, decode, precision=limits, form=form, looks=looks, progress=progress)
    return Report(identity.precision, truth.name, identity.backend, tuple(rows))


def verify_runners(
    bundle: Bundle, candidate: Candidate, truth: CasesAtSizes, looks: Looks | None, progress: Progress
) -> tuple[Case, ...]:
    shapes = verification_shapes(bundle.manifest.latent.factor)
    cases = [truth.at((shape.batch, shape.height, shape.width), shape.name, progress) for shape in shapes]
    encode, decode = _calls(bundle, {part: candidate.open(part) for part in PARTS})
    form = f"{candidate.backend} {candidate.precision}"
    return verify_cases(cases, encode, decode, precision=candidate.precision, form=form, looks=looks, progress=progress)


def _calls(bundle: Bundle, halves: Mapping[Part, Runner]) -> tuple[Any, Any]:
    """What ``verify_cases`` takes; None for a half that is not there."""

    def run(part: Part, value: NDArray[Any]) -> dict[str, Any]:
        half = halves[part]
        return dict(zip(half.outputs, half.run(half.outputs, {half.inputs[0]: value}), strict=True))

    return (
        (lambda photo: run("encoder", prepare_photo(bundle.manifest, photo))) if "encoder" in halves else None,
        (lambda latent: run("decoder", latent)) if "decoder" in halves else None,
    )


class CasesAtSizes:
    """Cases at any size, each computed once."""

    def __init__(self, truth: Truth, photos: list[NDArray[np.uint8]]) -> None:
        self.name = truth.name
        self._truth = truth
        self._photos = photos
        self._made: dict[tuple[int, int, int], GoldenCase] = {}

    def at(self, size: tuple[int, int, int], name: str, progress: Progress) -> GoldenCase:
        """size: batch, height and width in pixels."""
        if size not in self._made:
            what = f"Computing the reference at {'x'.join(map(str, size))}"
            progress(what, 0, 1)
            photo = crop_batch(self._photos, *size)
            latents = self._truth.encode(photo)
            image = self._truth.decode(next(iter(latents.values())))
            self._made[size] = GoldenCase(name, photo, latents, image, round_trip=False)
            progress(what, 1, 1)
        return dataclasses.replace(self._made[size], name=name)


class Truth(Protocol):
    """What is compared with: photo (B, H, W, 3) uint8 -> latents by name, latent -> image, as ``GoldenCase`` has
    them.
    """

    name: str

    def encode(self, photo: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]: ...
    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]: ...


class GraphTruth:
    """The bundle's float32 graphs on the CPU."""

    name = GRAPH

    def __init__(self, bundle: Bundle) -> None:
        if not bundle.verified:
            raise BundleError(
                f"bundle {bundle.path} is not verified, so nothing can be compared with it. Run: vaedeploy "
                f"verify {bundle.path}"
            )
        self._bundle = bundle
        self._sessions: dict[Part, Session] = {}

    def _session(self, part: Part) -> Session:
        if part not in self._sessions:  # kept: both are asked at every size
            self._sessions[part] = Session(self._bundle.graph(part, float32_form(self._bundle)))
        return self._sessions[part]

    def encode(self, photo: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        session = self._session("encoder")
        given = prepare_photo(self._bundle.manifest, photo)
        names = session.outputs
        return dict(zip(names, session.run(names, {session.inputs[0]: given}), strict=True))

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self._session("decoder").run(["image"], {"latent": latent})[0]
        return image


class TorchTruth:
    """PyTorch's modules on the GPU, with float32 products that are not rounded to TF32."""

    name = TORCH

    def __init__(self, reference: Reference, device: int) -> None:
        import torch

        self._reference = reference
        self._device = torch.device("cuda", device)

    def encode(self, photo: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return diffusion_space(self._run(self._reference.encoder, to_float(photo)), self._reference.latent)

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        raw = model_space(latent, self._reference.latent).astype(np.float32)
        return self._run(self._reference.decoder, raw)[0].astype(np.float32)

    def _run(self, module: Any, value: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Item by item: a batch of large ones has activations of several GB each."""
        import torch

        kinds = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
        before = [kind.fp32_precision for kind in kinds]
        for kind in kinds:
            kind.fp32_precision = "ieee"
        try:
            with torch.no_grad():
                module.to(self._device)
                items = [self._outputs(module, torch.from_numpy(value[n : n + 1])) for n in range(len(value))]
            return tuple(np.concatenate(parts) for parts in zip(*items, strict=True))
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"PyTorch has no room on the GPU for the reference of {'x'.join(map(str, value.shape))}: {error}. Free "
                "memory there, or leave --weights out: the reference is the verified graph on the CPU then"
            ) from error
        finally:
            for kind, precision in zip(kinds, before, strict=True):
                kind.fp32_precision = precision
            module.to("cpu")
            torch.cuda.empty_cache()  # the engine needs the room

    def _outputs(self, module: Any, item: Any) -> tuple[NDArray[Any], ...]:
        made = module(item.to(self._device))
        return tuple(output.double().cpu().numpy() for output in (made if isinstance(made, tuple) else (made,)))
