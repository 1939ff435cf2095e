"""Bundle + profiles -> engines in the bundle: what ``vaedeploy build`` does."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import onnx_ir as ir

from vaedeploy import calibrate
from vaedeploy.atomic import is_full
from vaedeploy.build import backend_version, build_engine
from vaedeploy.build_worker import BuildRequest
from vaedeploy.bundle import Bundle, BundleEdit, edit_bundle
from vaedeploy.cache import cache_folder
from vaedeploy.errors import BackendError, BuildError, BundleError, ProfileError, VaedeployError
from vaedeploy.estimate import Memory, estimate_memory
from vaedeploy.gpu import Gpu, find_gpu
from vaedeploy.graph import Graph, content_sha256, load_graph, save_form
from vaedeploy.identity import differences, engine_name
from vaedeploy.manifest import PARTS, Backend, EngineIdentity, EngineInfo, Part, Precision
from vaedeploy.profile import Options, Profile, get_profile
from vaedeploy.progress import Progress, silent
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.shapes import CORNERS, ShapeSet

__all__ = ["Job", "build_engines", "build_planned", "jobs_of", "plan_builds"]

GIB = 2**30

log = logging.getLogger("vaedeploy.engines")


def build_engines(
    bundle: Bundle | str | Path,
    profiles: Sequence[str],
    *,
    backend: Backend | None = None,
    folder: str | Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Build both halves of a bundle for each of ``profiles``, and put the engines into it; returns its new state.

    backend: what builds, instead of the profile's own. folder: where profiles of the user's lie besides those of the
    package. force: build again what is there already; without, an engine of the same identity is kept.
    Neither PyTorch nor the weights are needed. An engine that was not run on its GPU has no verification.

    Raises ProfileError for a profile that is not there or does not suit the VAE or the backend, and BackendError where
    the backend is not installed, both before anything is built. Raises BuildError where engines could not be built;
    the others are in the bundle then.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    return build_planned(bundle, plan_builds(profiles, backend=backend, folder=folder), force, progress)


def build_planned(bundle: Bundle, jobs: Sequence[Job], force: bool = False, progress: Progress = silent) -> Bundle:
    """``build_engines`` for jobs that ``plan_builds`` or ``jobs_of`` made."""
    for job in jobs:
        job.profile.check_factor(bundle.manifest.latent.factor)
    failures: list[VaedeployError] = []
    with edit_bundle(bundle) as edit:
        graphs = _Graphs(edit)
        for job in jobs:
            for part in PARTS:
                try:
                    with _told_of(job, part):
                        _build_part(edit, graphs, job, part, force, progress)
                except VaedeployError as error:
                    failures.append(error)
    if failures:
        total = len(PARTS) * len(jobs)
        kept = f"; the other {total - len(failures)} are in {bundle.path}" if len(failures) < total else ""
        reasons = "".join(f"\n- {reason}" for reason in dict.fromkeys(map(str, failures)))
        raise BuildError(f"{len(failures)} of {total} engines could not be built{kept}:{reasons}")
    return edit.bundle


@dataclass(frozen=True)
class Job:
    """One profile and what builds it, in which version. gpu: the GPU here, where the backend needs it for building."""

    profile: Profile
    backend: Backend
    version: str
    gpu: Gpu | None

    @property
    def gpu_name(self) -> str | None:
        """The one model that its engines will run on, if they are bound to one."""
        compatible = self.profile.options.hardware_compatibility == "same-compute-capability"
        return self.gpu.name if self.gpu and not compatible else None


def plan_builds(
    profiles: Sequence[str], *, backend: Backend | None = None, folder: str | Path | None = None
) -> tuple[Job, ...]:
    """What ``build_engines`` would build, once it is proved that it can begin. Raises ProfileError and BackendError as
    that does.
    """
    found = [get_profile(name, folder) for name in dict.fromkeys(profiles)]
    pairs = [(profile, backend or profile.backend) for profile in found]
    for profile, used in pairs:
        try:
            profile.check_backend(used)
        except ValueError as error:
            raise ProfileError(f"profile {profile.name}: {error}") from error
    return _jobs(pairs)


def jobs_of(bundle: Bundle) -> tuple[Job, ...]:
    """What would build the engines of ``bundle`` again, as their identities say. Raises BackendError as
    ``plan_builds`` does.
    """
    pairs = {}
    for info in bundle.manifest.engines.values():
        identity = info.identity
        profile = Profile(
            name=info.profile,
            gpu=identity.gpu or info.profile,
            compute_capability=identity.compute_capability,
            memory_gib=math.inf,  # it fitted
            backend=identity.backend,
            precision=identity.precision,
            shapes=identity.shapes,
            options=msgspec.convert(identity.options, Options),
        )
        pairs[info.profile, identity.backend] = profile, identity.backend
    return _jobs(list(pairs.values()))


def _jobs(pairs: Sequence[tuple[Profile, Backend]]) -> tuple[Job, ...]:
    """Raises BackendError where a backend does not load, or wants another GPU than is here."""
    versions = {used: backend_version(used) for used in dict.fromkeys(used for _, used in pairs)}
    gpu = find_gpu() if "tensorrt" in versions else None
    jobs = tuple(Job(p, used, versions[used], gpu if used == "tensorrt" else None) for p, used in pairs)
    for job in jobs:
        if job.backend == "tensorrt" and (gpu is None or gpu.compute_capability != job.profile.compute_capability):
            here = f"this machine has {gpu.name} ({gpu.compute_capability})" if gpu else "this machine has no GPU"
            raise BackendError(
                f"tensorrt builds on the GPU that it builds for: profile {job.profile.name} wants compute capability "
                f"{job.profile.compute_capability}, and {here}. Build there, or try --backend tensorrt-rtx"
            )
    return jobs


@dataclass
class _Graphs:
    """The graphs that go into builders, each made once and written to the edit's draft folder."""

    edit: BundleEdit
    made: dict[tuple[Part, Precision], tuple[Path, str]] = field(default_factory=dict)

    def get(self, part: Part, precision: Precision) -> tuple[Path, str]:
        """The file of a part's graph for TensorRT, and its content's sha256."""
        if (part, precision) not in self.made:
            portable = load_graph(self.edit.bundle.graph(part), part)
            if part not in self.edit.bundle.manifest.contents:
                self.edit.put(contents={part: content_sha256(portable)})
            rewritten = rewrite_graph(portable, "tensorrt", precision, maxima=self._maxima(part, precision)).graph
            path = self.edit.draft / f"{part}.{precision}.onnx"
            save_form(rewritten, path, shared=False)
            # Of the file, since lowered weights are made when they are written.
            self.made[part, precision] = path, content_sha256(load_graph(path, part))
        return self.made[part, precision]

    def _maxima(self, part: Part, precision: Precision) -> dict[str, float] | None:
        if precision != "fp16":
            return None
        bundle = self.edit.bundle
        if calibrate.NAME not in bundle.manifest.files:
            raise BundleError(
                f"bundle {bundle.path} has no {calibrate.NAME}, without which fp16 might overflow. "
                f"Export it again, verified: {bundle.manifest.export_command(bundle.path)}"
            )
        return calibrate.decode_calibration(bundle.file(calibrate.NAME).read_bytes()).of(part)


def _build_part(edit: BundleEdit, graphs: _Graphs, job: Job, part: Part, force: bool, progress: Progress) -> None:
    """Build one engine and put it into the bundle, unless an equal one is there."""
    profile = job.profile
    graph, rewritten = graphs.get(part, profile.precision)
    bundle = edit.bundle
    identity = EngineIdentity(
        graph=bundle.manifest.contents[part],
        rewritten=rewritten,
        precision=profile.precision,
        backend=job.backend,
        backend_version=job.version,
        compute_capability=profile.compute_capability,
        gpu=job.gpu_name,
        shapes=profile.shapes,
        options=profile.options.of(job.backend),
    )
    name = engine_name(profile.name, part, job.backend)
    before = bundle.manifest.engines.get(name)
    if before is not None and before.identity == identity and not force:
        progress(f"{name} is up to date", 1, 1)
        return
    if before is not None:
        log.info("%s is built again: %s", name, "; ".join(differences(before.identity, identity)) or "as asked")
    inputs = Inputs(load_graph(graph, part), bundle.manifest.latent.factor)
    _check_memory(profile, inputs)
    request = BuildRequest(
        backend=job.backend,
        graph=str(graph),
        out=str(edit.draft / "engine"),
        compute_capability=profile.compute_capability,
        network_name=identity.mark.decode(),
        input=str(inputs.value.name),
        profiles=[inputs.profile(shape) for shape in profile.shapes.values()],
        options=identity.options,
        timing_cache=_timing_cache(identity),
    )
    engine = build_engine(request, f"Building {profile.name} {part} with {job.backend}", progress)
    info = EngineInfo(
        profile=profile.name,
        part=part,
        identity=identity,
        activation_bytes=dict(zip(profile.shapes, engine.activation_bytes, strict=True)),
        weights_bytes=engine.weights_bytes,
        tensors=engine.tensors,
        layers=engine.layers,
    )
    edit.put(files={name: engine.path}, engines={name: info})


@dataclass(frozen=True)
class Inputs:
    """A graph and the sizes of its one input: an image, or a latent smaller by ``factor``."""

    graph: Graph
    factor: int

    @property
    def value(self) -> ir.Value:
        return self.graph.model.graph.inputs[0]

    def sizes(self, batch: int, height: int, width: int) -> dict[str, int]:
        """The input's symbolic dimensions for images of that size."""
        unit = self.factor if self.graph.part == "decoder" else 1
        names = [str(dim) for dim in self.value.shape or () if not isinstance(dim, int)]
        return dict(zip(names, (batch, height // unit, width // unit), strict=True))

    def profile(self, shape: ShapeSet) -> tuple[list[int], list[int], list[int]]:
        """The input's shape at each corner of ``shape``."""
        at = [self.sizes(*shape.at(corner)) for corner in CORNERS]
        least, best, most = ([d if isinstance(d, int) else s[str(d)] for d in self.value.shape or ()] for s in at)
        return least, best, most

    def memory(self, batch: int, height: int, width: int, single: bool) -> Memory:
        """An estimate at that size; ``single``: it is the engine's only one."""
        return estimate_memory(self.graph.model, self.sizes(batch, height, width), fused_attention=single)


def _check_memory(profile: Profile, inputs: Inputs) -> None:
    """Raise BuildError where an engine's largest size cannot fit the GPU, and say which size would."""
    available = profile.memory_gib * GIB
    single = len(profile.shapes) == 1 and next(iter(profile.shapes.values())).static
    for name, shape in profile.shapes.items():
        batch, height, width = shape.at("max")
        needed = inputs.memory(batch, height, width, single)
        if needed.total <= available:
            continue
        fitting = bisect_right(
            range(1, batch), available, key=lambda b: inputs.memory(b, height, width, single).total
        )  # memory grows with the batch
        advice = f"batch {fitting}" if fitting else "a smaller height and width"
        half = ", or precision fp16" if profile.precision == "fp32" else ""
        raise BuildError(
            f"the {inputs.graph.part} does not fit profile {profile.name}: at {batch}x{height}x{width} (shapes.{name}) "
            f"it needs about {needed.total / GIB:.1f} GiB ({needed.engine / GIB:.1f} for the engine, "
            f"{needed.activations / GIB:.1f} for activations), and {profile.gpu} has {profile.memory_gib:g} GiB. "
            f"Lower the maximum there to {advice}{half}"
        )


def _timing_cache(identity: EngineIdentity) -> str | None:
    """Where ``tensorrt`` keeps what it measured, so that the next build need not."""
    if identity.backend != "tensorrt":
        return None
    model = (identity.gpu or identity.compute_capability).replace(" ", "-").replace("/", "-")
    return str(cache_folder("timing") / f"{identity.backend_version}-{model}.cache")


@contextmanager
def _told_of(job: Job, part: Part) -> Iterator[None]:
    """Turn an error of the operating system into one that names the engine: one build's full disk is not another's."""
    try:
        yield
    except OSError as error:
        advice = "Free space there" if is_full(error) else "Look at the bundle's folder and its rights"
        what = f"{job.profile.name} {part}"
        raise BuildError(f"Building {what} failed: {error.strerror or error}. {advice}, and build again") from error
