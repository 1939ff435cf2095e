"""Bundle + profiles -> engines in the bundle: what ``vaedeploy build`` does."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from vaedeploy.bundle import Bundle, BundleEdit, as_bundle, edit_bundle
from vaedeploy.bundle.calibration import NAME as CALIBRATE_NAME
from vaedeploy.bundle.calibration import decode_calibration
from vaedeploy.bundle.engines import carries, differences, engine_name
from vaedeploy.bundle.manifest import EngineIdentity, EngineInfo
from vaedeploy.engines.build import build_engine, timing_cache_file
from vaedeploy.engines.estimate import check_memory
from vaedeploy.engines.plan import Job, plan_builds
from vaedeploy.engines.profile import Profile
from vaedeploy.engines.protocol import BuildRequest
from vaedeploy.errors import BuildError, BundleError, OutputError, VaedeployError
from vaedeploy.graph.graph import Inputs, content_sha256, load_graph, save_form
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.system.atomic import link_or_copy
from vaedeploy.system.oserrors import shortage
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import PARTS, Backend, Part, Precision

__all__ = ["build_engines", "build_planned"]

Sizes = frozenset[tuple[int, int, int]]
"""Batch, height and width of images."""

log = logging.getLogger(__name__)


def build_engines(
    bundle: Bundle | str | Path,
    profiles: Sequence[str],
    *,
    backend: Backend | None = None,
    folder: str | Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Build TensorRT engines of a bundle's encoder and decoder for GPU profiles, and put them into the bundle.

    >>> bundle = vd.build_engines("mse840k", ["rtx4090"])

    Returns the bundle with its engines. Neither PyTorch nor the weights are needed. An engine is unverified until
    ``verify_bundle`` has run it on its GPU.

    profiles: names, as ``vd.profiles`` lists them.
    backend: the one to build with, instead of the one that each profile names.
    folder: where profiles of your own are, besides those of the package.
    force: also rebuild engines that are in the bundle already. Without it, an engine with the same identity is kept.
        Either way, engines that several profiles have in common are built once.
    progress: reports how far each build is, see ``Progress``.

    Raises InputError for no profiles or an unknown backend, ProfileError for a profile that does not exist or does not
    suit the VAE or the backend, OutputError where the bundle cannot be written to, and BackendError where the backend
    is not installed, all before anything is built. Raises BuildError where engines could not be built; the others are
    in the bundle then.
    """
    bundle = as_bundle(bundle).current()
    return build_planned(bundle, plan_builds(profiles, backend=backend, folder=folder), force, progress)


def build_planned(bundle: Bundle, jobs: Sequence[Job], force: bool = False, progress: Progress = silent) -> Bundle:
    """``build_engines`` for jobs that ``plan_builds`` or ``plan_rebuilds`` made."""
    if not os.access(bundle.path, os.W_OK):  # otherwise this would only fail after the builds
        raise OutputError(
            f"cannot write bundle {bundle.path}: its folder is read-only here, so nothing was built. Allow writing to "
            "it, or copy it and build there"
        )
    jobs = [_of_factor(job, bundle.manifest.latent.factor) for job in jobs]
    failures: list[VaedeployError] = []
    with edit_bundle(bundle) as edit:
        builds = _Builds(edit, force, progress)
        for job in jobs:
            for part in PARTS:
                try:
                    with naming_engine(job, part):
                        builds.put(job, part)
                except VaedeployError as error:
                    failures.append(error)
    if failures:
        total = len(PARTS) * len(jobs)
        others = total - len(failures)
        kept = f"; the other {others} {'is' if others == 1 else 'are'} in {bundle.path}" if others else ""
        reasons = "".join(f"\n- {reason}" for reason in dict.fromkeys(map(str, failures)))
        raise BuildError(f"{len(failures)} of {total} engines could not be built{kept}:{reasons}", edit.bundle)
    return edit.bundle


def _of_factor(job: Job, factor: int) -> Job:
    """``job`` for the sizes that a VAE of this spatial factor takes."""
    profile, left_out = job.profile.of_factor(factor)
    if left_out:
        log.warning(
            "profile %s: shapes %s hold no size that is a multiple of %d, as this VAE needs; they are left out",
            profile.name,
            ", ".join(left_out),
            factor,
        )
    return dataclasses.replace(job, profile=profile)


@dataclass
class _Builds:
    """Builds engines into one bundle, while ``edit_bundle`` holds the right to write to it. Each graph for TensorRT is
    made once, and engines with equal identities are built once.

    graphs: (part, precision, largest sizes) -> the graph's file, and the sha256 of its content.
    fresh: digests of the identities whose engines are up to date, so that ``force`` builds none of them twice.
    """

    edit: BundleEdit
    force: bool
    progress: Progress
    graphs: dict[tuple[Part, Precision, Sizes], tuple[Path, str]] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)

    def put(self, job: Job, part: Part) -> None:
        """Put the engine of a job and a part into the bundle: keep it, copy an equal one, or build it."""
        profile = job.profile
        graph, rewritten = self._graph(profile, part)
        identity = EngineIdentity(
            graph=self.edit.bundle.manifest.contents[part],
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
        equal = self._find_equal(name, identity)
        file: Path | None = None
        if equal is None:
            self._log_reason(name, identity)
            file, info = self._build(job, part, graph, identity)
        else:
            info = msgspec.structs.replace(
                self.edit.bundle.manifest.engines[equal], profile=profile.name, cuda_graphs=profile.cuda_graphs
            )
            if equal != name:
                file = self._copy(equal)
            self.progress(f"{name} is {'up to date' if file is None else f'the same as {equal}'}", 1, 1)
        if file is not None or info != self.edit.bundle.manifest.engines[name]:
            self.edit.put(files={name: file} if file else None, engines={name: info})
        self.fresh.add(identity.digest)

    def _graph(self, profile: Profile, part: Part) -> tuple[Path, str]:
        """The file of a part's graph for TensorRT, and the sha256 of its content."""
        precision = profile.precision
        largest = frozenset(shape.at("max") for shape in profile.shapes.values())
        key = part, precision, largest
        if key not in self.graphs:
            portable = load_graph(self.edit.bundle.graph(part), part)
            if part not in self.edit.bundle.manifest.contents:
                self.edit.put(contents={part: content_sha256(portable)})
            inputs = Inputs(portable, self.edit.bundle.manifest.latent.factor)
            rewritten = rewrite_graph(
                portable,
                "tensorrt",
                precision,
                maxima=self._maxima(profile, part),
                keep_fp32=self.edit.bundle.manifest.keep_fp32,
                largest=[inputs.sizes(*size) for size in sorted(largest)],
            ).graph
            path = self.edit.draft / f"{len(self.graphs)}.{part}.{precision}.onnx"
            save_form(rewritten, path, shared=False)
            # The digest is of the file: weights are lowered only as they are written.
            self.graphs[key] = path, content_sha256(load_graph(path, part))
        return self.graphs[key]

    def _maxima(self, profile: Profile, part: Part) -> dict[str, float] | None:
        """The largest magnitude of each tensor, which fp16 needs; None for other precisions."""
        if profile.precision != "fp16":
            return None
        bundle = self.edit.bundle
        if CALIBRATE_NAME not in bundle.manifest.files:
            raise BundleError(
                f"profile {profile.name} is of fp16, and bundle {bundle.path} has no {CALIBRATE_NAME}, without which "
                f"that might overflow. Export it again, verified: {bundle.manifest.export_command(bundle.path)}"
            )
        return decode_calibration(bundle.read(CALIBRATE_NAME)).of(part)

    def _find_equal(self, name: str, identity: EngineIdentity) -> str | None:
        """An undamaged engine of that identity, preferably ``name`` itself; None where one must be built."""
        bundle = self.edit.bundle
        if self.force and identity.digest not in self.fresh:
            return None
        equal = [other for other, info in bundle.manifest.engines.items() if info.identity == identity]
        whole = (other for other in sorted(equal, key=lambda other: other != name) if not bundle.damage(other))
        return next(whole, None)

    def _log_reason(self, name: str, identity: EngineIdentity) -> None:
        """Log why an engine that is in the bundle is built again."""
        bundle = self.edit.bundle
        before = bundle.manifest.engines.get(name)
        if before is None:
            return
        damage = bundle.damage(name)
        if damage:
            log.warning("%s %s; it is built again", name, damage)
        else:
            log.info("%s is built again: %s", name, "; ".join(differences(before.identity, identity)) or "as asked")

    def _copy(self, name: str) -> Path:
        """A copy of the engine ``name``: a hard link, which takes no room, where the disk has them."""
        file = self.edit.draft / "engine"
        link_or_copy(self.edit.bundle.path / name, file)
        return file

    def _build(self, job: Job, part: Part, graph: Path, identity: EngineIdentity) -> tuple[Path, EngineInfo]:
        profile = job.profile
        inputs = Inputs(load_graph(graph, part), self.edit.bundle.manifest.latent.factor)
        check_memory(profile, inputs)
        request = BuildRequest(
            backend=job.backend,
            graph=str(graph),
            out=str(self.edit.draft / "engine"),
            compute_capability=profile.compute_capability,
            network_name=identity.mark.decode(),
            input=str(inputs.value.name),
            profiles=[inputs.profile(shape) for shape in profile.shapes.values()],
            options=identity.options,
            timing_cache=timing_cache_file(identity),
        )
        what = f"Building {profile.name} {part} with {job.backend}"
        engine = build_engine(request, what, self.progress)
        with engine.path.open("rb") as plan:
            marked = carries(plan.fileno(), identity.mark)
        if not marked:
            raise BuildError(
                f"{what} failed: {job.backend} {job.version} does not write the network's name into its plans, by "
                "which engines are identified"
            )
        return engine.path, EngineInfo(
            profile=profile.name,
            part=part,
            identity=identity,
            activation_bytes=dict(zip(profile.shapes, engine.activation_bytes, strict=False)),
            weights_bytes=engine.weights_bytes,
            tensors=engine.tensors,
            layers=engine.layers,
            cuda_graphs=profile.cuda_graphs,
        )


@contextmanager
def naming_engine(job: Job, part: Part) -> Iterator[None]:
    """Context that turns an OSError into a BuildError that names the engine, so that a disk that is too full for one
    engine does not stop the builds of others.
    """
    try:
        yield
    except OSError as error:
        short = shortage(error)
        advice = short[1] if short else "Look at the bundle's folder and its rights"
        what = f"{job.profile.name} {part}"
        raise BuildError(f"Building {what} failed: {error.strerror or error}. {advice}, and build again") from error
