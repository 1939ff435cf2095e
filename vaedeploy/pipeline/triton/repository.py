"""Writes a model repository: a folder for each model, with ``config.pbtxt`` and the folder ``1``, its version."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from vaedeploy.bundle import Bundle, as_bundle, file_info
from vaedeploy.bundle.copy import copy_bundle
from vaedeploy.bundle.engines import read_engine
from vaedeploy.bundle.stored import refuse_in_bundle
from vaedeploy.errors import BundleError, InputError, OutputError
from vaedeploy.pipeline.triton.config import MARK, onnxruntime_config, python_config, tensorrt_config
from vaedeploy.runtime.unverified import unverified_text
from vaedeploy.system.atomic import (
    clear_leftovers,
    draft_name,
    link_or_copy,
    lock_name,
    replace_directory,
    transient_folder,
)
from vaedeploy.system.lock import lock
from vaedeploy.system.mounts import is_mount
from vaedeploy.system.oserrors import advice, reason
from vaedeploy.system.places import is_vacant, resolved
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import PARTS
from vaedeploy.values.served import NAME, model_name

CONFIG, VERSION, BUNDLE = "config.pbtxt", "1", "bundle"

MODEL = '''\
"""Half of a VAE in Triton's Python backend. Written by vaedeploy; config.pbtxt says which half of which bundle."""

import sys

import triton_python_backend_utils as pb

try:
    from vaedeploy.adapters.triton import Half
except ImportError as error:
    raise ImportError(
        f"{error}. This model needs vaedeploy in the Python that runs it, {sys.prefix}. Install it there, from a "
        "release or a checkout, with its extra [cpu], or [cuda] or [tensorrt] for a GPU"
    ) from error


class TritonPythonModel:
    def initialize(self, args):
        self.half = Half(pb, args)

    def execute(self, requests):
        return self.half.execute(requests)

    def finalize(self):
        self.half.close()
'''
"""``model.py``. Its work is done in the package, so that a newer vaedeploy mends a fault in every repository."""


def write_triton(
    bundle: Bundle | str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    bundle_at: str | None = None,
    native: bool = False,
    max_batch: int = 8,
    allow_unverified: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> tuple[Path, ...]:
    """Write a model repository for Triton Inference Server, and return the folders of its models.

    >>> vd.write_triton("mse840k", "models")
    (PosixPath('models/mse840k-decode'), PosixPath('models/mse840k-encode'))

    out: the folder to make, which ``tritonserver --model-repository`` takes.
    name: what the models' names begin with; by default what the bundle calls its VAE.
    bundle_at: the absolute path of the bundle on the server's machine, such as that of a volume. By default each model
        has a copy in its folder, so that the repository can be moved; the copies share their space on disks with hard
        links.
    native: instead of models for Triton's Python backend, write models for its onnxruntime backend, and one for its
        tensorrt backend for each TensorRT engine of the bundle. They need no vaedeploy, and lose what its runtime does;
        each configuration says what.
    max_batch: the most items of a request, and of requests that are joined. An engine's own limit holds for its native
    model.
    allow_unverified: write models even of a bundle that was never verified or failed.
    force: replace a repository that is at ``out``, if vaedeploy wrote all of it.
    progress: see ``Progress``.

    Raises InputError for invalid arguments, such as a name that no model can have; BundleError for a bundle that is
    damaged or not verified; OutputError where ``out`` exists (without ``force``), has something else in it, or cannot
    be written. A repository appears in one step, when it is whole.
    """
    bundle, out = as_bundle(bundle).current(), Path(out)
    name = name or bundle.manifest.vae.name
    _check(bundle, name, bundle_at, native, max_batch, allow_unverified)
    with _drafting(out, force) as draft:
        if native:
            _write_native(bundle, draft, name, max_batch)
        else:
            _write_python(bundle, draft, name, bundle_at, max_batch, progress)
        models = sorted(folder.name for folder in draft.iterdir())
    return tuple(out / model for model in models)


def _check(
    bundle: Bundle, name: str, bundle_at: str | None, native: bool, max_batch: int, allow_unverified: bool
) -> None:
    if not NAME.fullmatch(name):
        raise InputError(
            f"models cannot be called {name!r}; give a name of letters, digits, '.', '_' and '-' with --name (name=)"
        )
    if isinstance(max_batch, bool) or not isinstance(max_batch, int) or max_batch < 1:
        raise InputError(f"max_batch is {max_batch!r}; it must be 1 or more")
    if bundle_at is not None and native:
        raise InputError("native models have the bundle's graphs in their folders; leave bundle_at out")
    if bundle_at is not None and not PurePosixPath(bundle_at).is_absolute():
        raise InputError(
            f"bundle_at is {bundle_at!r}; it must be an absolute path, that of the bundle on the server's machine"
        )
    if not allow_unverified and (text := unverified_text(bundle)):
        raise BundleError(f"{text}. To write it anyway, give --allow-unverified (allow_unverified=True in Python)")


def _write_python(
    bundle: Bundle, draft: Path, name: str, bundle_at: str | None, max_batch: int, progress: Progress
) -> None:
    first: Path | None = None
    for part in PARTS:
        folder = draft / model_name(name, part)
        version = folder / VERSION
        version.mkdir(parents=True)
        config = python_config(folder.name, bundle.manifest, part, bundle_at or BUNDLE, max_batch)
        _write(folder / CONFIG, config.encode())
        _write(version / "model.py", MODEL.encode())
        if bundle_at is not None:
            continue
        if first is None:
            first = version / BUNDLE
            copy_bundle(bundle, first, progress)
        else:
            shutil.copytree(
                first, version / BUNDLE, copy_function=lambda file, place: link_or_copy(Path(file), Path(place))
            )


def _write_native(bundle: Bundle, draft: Path, name: str, max_batch: int) -> None:
    for part in PARTS:
        folder = draft / model_name(name, part)
        (folder / VERSION).mkdir(parents=True)
        graph = bundle.graph(part, "onnxruntime").relative_to(bundle.path).as_posix()
        with bundle.read_graph(part, "onnxruntime") as content:
            _write(folder / VERSION / "model.onnx", content.model)
            for file, weights in content.weights.items():
                _write(folder / VERSION / file, weights)
        _write(folder / CONFIG, onnxruntime_config(folder.name, bundle.manifest, part, graph, max_batch).encode())
    for engine, info in bundle.manifest.engines.items():
        if info.identity.backend != "tensorrt":  # Triton has no backend for TensorRT-RTX
            continue
        folder = draft / f"{model_name(name, info.part)}-{info.profile}"
        (folder / VERSION).mkdir(parents=True)
        _write(folder / VERSION / "model.plan", read_engine(bundle, engine))
        _write(folder / CONFIG, tensorrt_config(folder.name, bundle.manifest, engine, info).encode())


def _write(place: Path, data: bytes) -> None:
    place.write_bytes(data)
    file_info(place, sync=True)


@contextmanager
def _drafting(out: Path, force: bool) -> Iterator[Path]:
    """Context with a new folder, which is renamed to ``out`` at the end, unless an error leaves the context."""
    place = resolved(out)
    refuse_in_bundle(out)
    try:
        if not place.name or is_mount(place):
            raise OutputError(f"{out} cannot be replaced. Choose a folder in it with -o (out=)")
        with transient_folder(place.parent), lock(lock_name(place)) as free:
            if not free:
                raise OutputError(f"cannot write {out}: another process is writing it now. Wait until it is done")
            clear_leftovers(place)
            _check_free(place, out, force)
            draft = draft_name(place)
            draft.mkdir()
            try:
                yield draft
                _check_free(place, out, force)
                replace_directory(draft, place)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {reason(error)}. {advice(error)}") from error


def _check_free(place: Path, out: Path, force: bool) -> None:
    """Raise OutputError if something is at ``place`` that may not be replaced. An empty folder may."""
    if is_vacant(place):
        return
    if not place.is_dir():
        raise OutputError(f"{out} is there and is a file. Choose another place with -o (out=)")
    if foreign := _foreign(place):
        raise OutputError(
            f"{out} has {foreign}, which vaedeploy did not write; it is left as it is. Choose another place with -o "
            "(out=), and copy the models' folders from there into your repository"
        )
    if not force:
        raise OutputError(
            f"{out} exists already. Replace it with --force (force=True in Python), or choose another place with -o "
            "(out=)"
        )


def _foreign(place: Path) -> str | None:
    """Something in the folder ``place`` that is no model of ours."""
    for entry in sorted(place.iterdir()):
        config = entry / CONFIG
        if not config.is_file() or not config.read_bytes().startswith(MARK.encode()):
            return entry.name
    return None
