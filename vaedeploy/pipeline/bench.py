"""How long a bundle's encoder and decoder take on each backend of this machine, and how near that is to its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec
import numpy as np

from vaedeploy.bundle import Bundle, as_bundle
from vaedeploy.errors import BackendError, EngineError, InputError, SizeError
from vaedeploy.graph.graph import Inputs, load_graph
from vaedeploy.graph.operations import count_operations, weight_bytes
from vaedeploy.images.photos import Photo, crop_batch, load_photos
from vaedeploy.pipeline.ceilings import Ceilings, measure_ceilings
from vaedeploy.pipeline.turns import milliseconds, take_turns
from vaedeploy.runtime import VAE, openvino
from vaedeploy.runtime.backends import BACKENDS, ENGINES, check_backend, problem_of
from vaedeploy.runtime.graph_candidates import precision_of
from vaedeploy.system.arguments import as_list
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import PARTS, Part, Precision

__all__ = ["Bench", "Timing", "bench_bundle"]


class Timing(msgspec.Struct, frozen=True):
    """How long whole calls of one half take on one backend, with arrays in the host's memory.

    batch, height, width: items, and pixels; all 0 where the backend could not be opened.
    ms, least_ms, most_ms: the median, the least and the most over all rounds, in milliseconds per call. floor_ms: the
        least milliseconds that the hardware needs: the longer of the half's operations at the rate of a large matrix
        product in that precision, and its weights, input and output at the rate of a large copy. None where no ceiling
        was measured for that precision.
    problem: why there are no figures; None where there are.
    """

    backend: str
    precision: Precision
    part: Part
    batch: int
    height: int
    width: int
    ms: float | None = None
    least_ms: float | None = None
    most_ms: float | None = None
    floor_ms: float | None = None
    problem: str | None = None

    @property
    def share(self) -> float | None:
        """Floor over measured time: 1 means that the hardware could not be faster. None where either is missing."""
        return None if self.ms is None or self.floor_ms is None else self.floor_ms / self.ms


class Bench(msgspec.Struct, frozen=True):
    """The result of ``bench_bundle``: all timings, and the ceilings of the devices that were used."""

    ceilings: tuple[Ceilings, ...]
    timings: tuple[Timing, ...]


def bench_bundle(
    bundle: Bundle | str | Path,
    *,
    backends: Sequence[str] = (),
    sizes: Sequence[tuple[int, int]] = ((512, 512),),
    batches: Sequence[int] = (1,),
    rounds: int = 7,
    device: int = 0,
    progress: Progress = silent,
) -> Bench:
    """Time how long encoding and decoding photographs takes on each backend of this machine.

    >>> bench = vd.bench_bundle("mse840k", sizes=[(512, 512), (768, 1024)], batches=[1, 4])
    >>> for timing in bench.timings:
    ...     print(timing.backend, timing.part, timing.ms, timing.share)

    The backends take turns, so that whatever disturbs one of them disturbs all.

    backends: the names of the backends to time, such as "onnxruntime-cpu", or with the precision to compute in, such as
        "openvino:bf16"; by default, all that work here, and OpenVINO in bf16 too where the CPU has it.
    sizes: (height, width) in pixels. batches: items per call. Each size is timed with each batch.
    rounds: how many times each backend has its turn.
    device: the number of the CUDA device.
    progress: reports how many halves and sizes are done, see ``Progress``.

    Where one of several backends cannot run the bundle or a size, ``Timing.problem`` says why.

    Raises InputError for an unknown backend, SizeError, an InputError, for sizes that are not multiples of the VAE's
    factor, and BackendError or EngineError where none of the backends can run the bundle.
    """
    bundle = as_bundle(bundle)
    _check(bundle, sizes, batches, rounds)
    chosen = _choose(bundle, as_list("backends", backends), device)
    photos, timings = _photos(), []
    total, done = len(sizes) * len(batches) * len(PARTS), 0
    with ExitStack() as stack:
        vaes, problems = _open(bundle, chosen, device, stack)
        ceilings = {way: measure_ceilings(way.backend, device) for way in chosen}
        precisions = {way: vae.precision for way, vae in vaes.items()}
        timings += [
            Timing(way.backend, way.precision or _precision(bundle, way.backend), part, 0, 0, 0, problem=why)
            for way, why in problems.items()
            for part in PARTS
        ]
        for height, width in sizes:
            for batch in batches:
                photo = crop_batch(photos, batch, height, width, channels=bundle.manifest.latent.image_channels)
                latent = _latent(vaes, photo)
                for part in PARTS:
                    progress("Timing", done, total)
                    calls = {n: _call(vae, part, photo if part == "encoder" else latent) for n, vae in vaes.items()}
                    size = batch, height, width
                    floors = {w: _floor(bundle, part, size, ceilings[w], precisions[w]) for w in vaes}
                    for way, (seconds, problem) in take_turns(calls, rounds).items():
                        row = Timing(way.backend, precisions[way], part, *size, problem=problem)
                        timings.append(_filled(row, seconds, floors[way]) if seconds else row)
                    done += 1
    progress("Timing", total, total)
    return Bench(tuple({c.device: c for c in ceilings.values() if c}.values()), tuple(timings))


def _photos() -> list[Photo]:
    """scikit-image's photographs, or noise where it is not installed: both take equally long."""
    try:
        return load_photos()
    except ImportError:
        return [np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)]


def _check(bundle: Bundle, sizes: Sequence[tuple[int, int]], batches: Sequence[int], rounds: int) -> None:
    """Raise InputError or SizeError for sizes, batches or rounds that cannot be timed."""
    rule = bundle.manifest.latent.sizes
    for size in as_list("sizes", sizes):
        try:
            height, width = size
        except (TypeError, ValueError) as error:
            raise InputError(
                f"sizes is {sizes!r}; it must be a list of (height, width), such as [(512, 768)]"
            ) from error
        if not rule.allows(height, width):
            raise SizeError(f"size {height}x{width} (height x width) cannot be timed: {rule.advice(height, width)}")
    for batch in as_list("batches", batches):
        if batch < 1:
            raise InputError(f"batch is {batch}; it must be 1 or more")
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; it must be 1 or more")


class _Way(NamedTuple):
    """A backend, and the precision that was asked of it."""

    backend: str
    precision: Precision | None = None


def _choose(bundle: Bundle, backends: Sequence[str], device: int) -> list[_Way]:
    """``backends``, or by default all that work here; those that run engines only if the bundle has some."""
    if backends:
        return list(dict.fromkeys(map(_way, backends)))
    built = {info.identity.backend for info in bundle.manifest.engines.values()}
    possible = [name for name in BACKENDS if name not in ENGINES or name in built]
    chosen = [_Way(name) for name in possible if problem_of(name, device) is None]
    if not chosen:
        raise BackendError(". ".join(str(problem_of(name, device)) for name in possible))
    if _Way(openvino.NAME) in chosen and openvino.gains_from_bfloat16():
        chosen.append(_Way(openvino.NAME, "bf16"))
    return chosen


def _way(text: str) -> _Way:
    """The way that is written NAME or NAME:PRECISION. Raises InputError where there is no such backend or precision."""
    name, _, precision = text.partition(":")
    check_backend(name)
    for known in get_args(Precision):
        if precision == known:
            return _Way(name, known)
    if precision:
        raise InputError(f"there is no precision {precision!r}; there is: {', '.join(get_args(Precision))}")
    return _Way(name)


def _open(
    bundle: Bundle, chosen: Sequence[_Way], device: int, stack: ExitStack
) -> tuple[dict[_Way, VAE], dict[_Way, str]]:
    """The backends that can be opened, and why the others cannot. Raises the last reason where none can."""
    vaes: dict[_Way, VAE] = {}
    problems: dict[_Way, str] = {}
    for way in chosen:
        try:
            vaes[way] = stack.enter_context(VAE(bundle.path, way.backend, precision=way.precision, device=device))
        except (BackendError, EngineError) as error:
            if not vaes and way == chosen[-1]:
                raise
            problems[way] = str(error)
    return vaes, problems


def _latent(vaes: Mapping[_Way, VAE], photo: Photo) -> Any:
    """The latent of a batch of photographs, or noise of its shape where none of ``vaes`` takes their size."""
    for vae in vaes.values():
        with suppress(BackendError, EngineError, SizeError):
            return vae.encode(photo)
    latent = next(iter(vaes.values())).latent
    shape = len(photo), latent.channels, photo.shape[1] // latent.factor, photo.shape[2] // latent.factor
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _call(vae: VAE, part: Part, value: Any) -> Callable[[], Any]:
    return lambda: vae.encode(value) if part == "encoder" else vae.decode(value)


def _filled(row: Timing, seconds: Sequence[float], floor: float | None) -> Timing:
    return msgspec.structs.replace(row, **milliseconds(seconds), floor_ms=None if floor is None else floor * 1000)


def _precision(bundle: Bundle, backend: str) -> Precision:
    """What a backend that cannot be opened would compute in."""
    engines = bundle.manifest.engines.values()
    built = [info.identity.precision for info in engines if info.identity.backend == backend]
    return built[0] if built else precision_of(bundle)


def _floor(
    bundle: Bundle, part: Part, size: tuple[int, int, int], ceilings: Ceilings | None, precision: Precision
) -> float | None:
    """``Timing.floor_ms``, in seconds. Operations are counted in the portable graph, so that those that a rewrite saves
    count in its favour.
    """
    if ceilings is None or precision not in ceilings.product:
        return None
    graph = load_graph(bundle.graph(part), part)
    operations = count_operations(graph.model, Inputs(graph, bundle.manifest.latent.factor).sizes(*size)).total
    batch, height, width = size
    latent = bundle.manifest.latent
    transferred = batch * height * width * (latent.image_channels + 4 * latent.channels / latent.factor**2)
    bytes_per_weight = 4 if precision == "fp32" else 2
    moved = weight_bytes(graph.model) * bytes_per_weight / 4 + transferred
    return max(operations / ceilings.product[precision], moved / ceilings.copy)
