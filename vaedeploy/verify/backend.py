"""Comparing what a backend computes on this machine with PyTorch, or with the bundle's verified graph on the CPU."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.golden import GoldenCase
from vaedeploy.errors import BackendError, BundleError
from vaedeploy.images.photos import crop_batch, full_sizes
from vaedeploy.images.pixels import to_float
from vaedeploy.runtime.candidate import Candidate
from vaedeploy.runtime.engine_candidates import open_engines
from vaedeploy.runtime.graph_candidates import float32_form
from vaedeploy.runtime.onnxruntime_cpu import Session
from vaedeploy.runtime.routes import Half
from vaedeploy.runtime.runner import Runner
from vaedeploy.system.progress import Progress
from vaedeploy.system.torch_state import plain_torch
from vaedeploy.values.kinds import PARTS, Part, Precision
from vaedeploy.values.shapes import CORNERS
from vaedeploy.verify.cases import verify_cases
from vaedeploy.verify.graphs import prepare_photo
from vaedeploy.verify.looks import Looks
from vaedeploy.verify.record import record
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
    """Run one engine of a bundle: each of its optimisation profiles at its minimum, optimum and maximum.

    name: the engine's file in the bundle. truth: what its outputs are compared with. looks: see ``verify_cases``.
    device: the number of the CUDA device.
    """
    info = bundle.manifest.engines[name]
    identity = info.identity
    # TF32 rounds the inputs of convolutions to 10 bits, as fp16 does.
    limits: Precision = "fp16" if identity.precision == "fp32" and identity.options.get("tf32") else identity.precision
    rows: list[Case] = []
    for index, (sizes, shape) in enumerate(identity.shapes.items()):
        corners = list(dict.fromkeys(shape.at(corner) for corner in CORNERS))
        cases = [truth.at(size, f"{sizes} of {info.profile}", progress) for size in corners]
        session = open_engines(Half(bundle, info.part, identity.backend, (name,), only=index), device)
        encode, decode = _calls(bundle, {info.part: session})
        form = f"{info.profile} {identity.backend} {identity.precision}"
        rows += verify_cases(cases, encode, decode, precision=limits, form=form, looks=looks, progress=progress)
    return record(bundle.manifest, identity.precision, truth.name, identity.backend, rows, device=device)


def verify_runners(
    bundle: Bundle, candidate: Candidate, truth: CasesAtSizes, looks: Looks | None, progress: Progress
) -> tuple[Case, ...]:
    """Run both halves of a bundle on a backend that runs graphs, at the sizes at which every bundle is verified."""
    shapes = verification_shapes(bundle.manifest.latent.factor)
    cases = [truth.at((shape.batch, shape.height, shape.width), shape.name, progress) for shape in shapes]
    encode, decode = _calls(bundle, {part: _open(bundle, candidate, part) for part in PARTS})
    form = f"{candidate.backend} {candidate.precision}"
    return verify_cases(cases, encode, decode, precision=candidate.precision, form=form, looks=looks, progress=progress)


def _open(bundle: Bundle, candidate: Candidate, part: Part) -> Runner:
    """Open a half. If a library refuses a node, the node's PyTorch module is added to its message."""
    try:
        return candidate.open(part)
    except BackendError as error:
        raise BackendError(f"{str(error).rstrip()}{_modules(bundle, part, str(error))}") from error


def _modules(bundle: Bundle, part: Part, message: str) -> str:
    """The PyTorch modules of the nodes of a half's graphs that ``message`` names, in words to append to it."""
    import onnx_ir as ir

    from vaedeploy.graph.graph import module_path

    named = set(re.findall(r"[\w./]+", message))
    found: dict[str, str] = {}
    for name in bundle.manifest.graphs[part].values():
        for node in ir.load(bundle.path / name).graph:
            # OpenVINO calls a node that it cannot read by its output.
            outputs = {f"<Node({node.op_type}): {value.name}>": value.name for value in node.outputs}
            called = [node.name] if node.name in named else [n for text, n in outputs.items() if text in message]
            if called and (path := module_path(node)):
                found[str(called[0])] = path
    return "".join(f". {name} is of {path} in PyTorch" for name, path in found.items())


def _calls(bundle: Bundle, halves: Mapping[Part, Runner]) -> tuple[Any, Any]:
    """The callables ``encode`` and ``decode`` of ``verify_cases``; None for a half that is not in ``halves``."""

    def run(part: Part, value: NDArray[Any]) -> dict[str, Any]:
        half = halves[part]
        return dict(zip(half.outputs, half.run(half.outputs, {half.inputs[0]: value}), strict=True))

    return (
        (lambda photo: run("encoder", prepare_photo(bundle.manifest, photo))) if "encoder" in halves else None,
        (lambda latent: run("decoder", latent)) if "decoder" in halves else None,
    )


class CasesAtSizes:
    """Golden cases at any size: photographs, and the reference's outputs for them. Each size is computed once."""

    def __init__(self, truth: Truth, photos: list[NDArray[np.uint8]], channels: int) -> None:
        """channels: of the VAE's images."""
        self.name = truth.name
        self._truth = truth
        self._photos = photos
        self._channels = channels
        self._cases: dict[tuple[int, int, int], GoldenCase] = {}

    def at(self, size: tuple[int, int, int], name: str, progress: Progress) -> GoldenCase:
        """The case of that size, called ``name``. size: batch, and height and width in pixels."""
        if size not in self._cases:
            what = f"Computing the reference at {'x'.join(map(str, size))}"
            progress(what, 0, 1)
            photo = crop_batch(self._photos, *size, channels=self._channels)
            latents = self._truth.encode(photo)
            image = self._truth.decode(next(iter(latents.values())))
            self._cases[size] = GoldenCase(
                name, photo, latents, image, round_trip=False, full=full_sizes(self._photos, size[0])
            )
            progress(what, 1, 1)
        return dataclasses.replace(self._cases[size], name=name)


class Truth(Protocol):
    """A reference that a backend is compared with.

    ``encode``: photo (B, H, W, N) uint8 -> latents by name. ``decode``: latent -> image. Latents and images are as
    in ``GoldenCase``. name: what the report calls the reference.
    """

    name: str

    def encode(self, photo: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]: ...
    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]: ...


class GraphTruth:
    """The bundle's float32 graphs on the CPU. Raises BundleError where the bundle is not verified."""

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
        if part not in self._sessions:  # both are kept open: every size needs them
            form = float32_form(self._bundle)
            read = partial(self._bundle.read_graph, part, form)
            self._sessions[part] = Session(self._bundle.graph(part, form), read=read)
        return self._sessions[part]

    def encode(self, photo: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        session = self._session("encoder")
        image = prepare_photo(self._bundle.manifest, photo)
        names = session.outputs
        return dict(zip(names, session.run(names, {session.inputs[0]: image}), strict=True))

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self._session("decoder").run(["image"], {"latent": latent})[0]
        return image


def check_torch(device: int) -> None:
    """Raise BackendError where PyTorch cannot compute on the CUDA device of that number."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device >= count:
        raise BackendError(
            f"PyTorch {torch.__version__} has {count} CUDA devices here, and a backend is compared with it on device "
            f"{device}. Install PyTorch's build for CUDA, or leave the weights out: the reference is the bundle's "
            "verified graph on the CPU then"
        )


class TorchTruth:
    """The PyTorch modules on the GPU, in float32 that is not rounded to TF32."""

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
        """Run a module on one item at a time: the activations of a large item take several GB."""
        import torch

        settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
        before = [setting.fp32_precision for setting in settings]
        for setting in settings:
            setting.fp32_precision = "ieee"
        try:
            with plain_torch():
                module.to(self._device)
                items = [self._outputs(module, torch.from_numpy(value[n : n + 1])) for n in range(len(value))]
            return tuple(np.concatenate(parts) for parts in zip(*items, strict=True))
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"PyTorch has no room on the GPU for the reference of {'x'.join(map(str, value.shape))}: {error}. Free "
                "memory there, or leave --weights out: the reference is the verified graph on the CPU then"
            ) from error
        finally:
            for setting, precision in zip(settings, before, strict=True):
                setting.fp32_precision = precision
            module.to("cpu")
            torch.cuda.empty_cache()  # PyTorch would keep the memory, and the engine needs it

    def _outputs(self, module: Any, item: Any) -> tuple[NDArray[Any], ...]:
        outputs = module(item.to(self._device))
        return tuple(
            output.double().cpu().numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))
        )
