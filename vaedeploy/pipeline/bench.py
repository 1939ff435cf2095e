"""How long a bundle's halves take on each backend of this machine, and how near that is to what the machine can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vaedeploy.bundle import Bundle, as_bundle
from vaedeploy.errors import BackendError, EngineError, InputError, SizeError
from vaedeploy.graph.graph import Inputs, load_graph
from vaedeploy.graph.operations import count_operations, weight_bytes
from vaedeploy.images.photos import Photo, crop_batch, load_photos
from vaedeploy.pipeline.ceilings import Ceilings, measure_ceilings
from vaedeploy.pipeline.turns import milliseconds, take_turns
from vaedeploy.runtime import VAE
from vaedeploy.runtime.backends import BACKENDS, ENGINES, precision_of, problem_of
from vaedeploy.system.arguments import as_list
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import PARTS, Part, Precision

__all__ = ["Bench", "Timing", "bench_bundle"]


class Timing(msgspec.Struct, frozen=True):
    """A half on a backend at one size: whole calls, with arrays of the host's.

    ms: the median of all turns, least and most beside it. floor_ms: what its operations take at the rate of a matrix
    product in that precision, or its weights, input and output at that of a copy, whichever is longer; None where the
    ceilings were not measured. problem: why there are no figures.
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
        """Of the floor in the time: 1 would be as fast as can be."""
        return None if self.ms is None or self.floor_ms is None else self.floor_ms / self.ms


class Bench(msgspec.Struct, frozen=True):
    """All timings, and the ceilings of the devices that were used."""

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
    """Time encode and decode of photographs on every backend, in turns, so that what disturbs one disturbs all.

    backends: those to time; none: all that answer here. sizes: (height, width) in pixels. batches: items in a call.
    rounds: turns of each. device: the CUDA device. progress: is told how many sizes are done, see ``Progress``.

    Raises InputError for a backend that there is not and for sizes off the factor, BackendError where none answers.
    """
    bundle = as_bundle(bundle)
    _check(bundle, sizes, batches, rounds)
    chosen = _answering(bundle, as_list("backends", backends), device)
    ceilings = {name: measure_ceilings(name, device) for name in chosen}
    photos, timings = _photos(), []
    total, done = len(sizes) * len(batches) * len(PARTS), 0
    with ExitStack() as stack:
        vaes, problems = _open(bundle, chosen, device, stack)
        timings += [
            Timing(name, _precision(bundle, name), part, 0, 0, 0, problem=why)
            for name, why in problems.items()
            for part in PARTS
        ]
        for height, width in sizes:
            for batch in batches:
                photo = crop_batch(photos, batch, height, width)
                latent = _widest(vaes).encode(photo)
                for part in PARTS:
                    progress("Timing", done, total)
                    calls = {n: _call(vae, part, photo if part == "encoder" else latent) for n, vae in vaes.items()}
                    floors = {n: _floor(bundle, part, (batch, height, width), ceilings[n], n) for n in vaes}
                    for name, (seconds, problem) in take_turns(calls, rounds).items():
                        row = Timing(name, _precision(bundle, name), part, batch, height, width, problem=problem)
                        timings.append(_filled(row, seconds, floors[name]) if seconds else row)
                    done += 1
    progress("Timing", total, total)
    return Bench(tuple({c.device: c for c in ceilings.values() if c}.values()), tuple(timings))


def _photos() -> list[Photo]:
    """scikit-image's, or noise where it is not installed: neither takes longer."""
    try:
        return load_photos()
    except ImportError:
        return [np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)]


def _check(bundle: Bundle, sizes: Sequence[tuple[int, int]], batches: Sequence[int], rounds: int) -> None:
    """Raise InputError or SizeError for what cannot be timed."""
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


def _answering(bundle: Bundle, backends: Sequence[str], device: int) -> list[str]:
    built = {info.identity.backend for info in bundle.manifest.engines.values()}
    possible = [name for name in BACKENDS if name not in ENGINES or name in built]
    chosen = list(backends) or [name for name in possible if problem_of(name, device) is None]
    if not chosen:
        raise BackendError(". ".join(str(problem_of(name, device)) for name in possible))
    return chosen


def _open(
    bundle: Bundle, chosen: Sequence[str], device: int, stack: ExitStack
) -> tuple[dict[str, VAE], dict[str, str]]:
    """(those that can be used, why the others cannot). Raises the last reason where there are none."""
    vaes: dict[str, VAE] = {}
    problems: dict[str, str] = {}
    for name in chosen:
        try:
            vaes[name] = stack.enter_context(VAE(bundle.path, name, device=device))
        except (BackendError, EngineError) as error:
            if not vaes and name == chosen[-1]:
                raise
            problems[name] = str(error)
    return vaes, problems


def _widest(vaes: Mapping[str, VAE]) -> VAE:
    """The last is the one that takes every size, where it is there."""
    return list(vaes.values())[-1]


def _call(vae: VAE, part: Part, value: Any) -> Callable[[], Any]:
    return lambda: vae.encode(value) if part == "encoder" else vae.decode(value)


def _filled(row: Timing, seconds: Sequence[float], floor: float | None) -> Timing:
    return msgspec.structs.replace(row, **milliseconds(seconds), floor_ms=None if floor is None else floor * 1000)


def _precision(bundle: Bundle, backend: str) -> Precision:
    engines = bundle.manifest.engines.values()
    own = [info.identity.precision for info in engines if info.identity.backend == backend]
    return own[0] if own else precision_of(bundle)


def _floor(
    bundle: Bundle, part: Part, size: tuple[int, int, int], ceilings: Ceilings | None, backend: str
) -> float | None:
    """Seconds. Operations are those of the portable graph: what a rewrite saves is its merit."""
    precision = _precision(bundle, backend)
    if ceilings is None or precision not in ceilings.product:
        return None
    graph = load_graph(bundle.graph(part), part)
    operations = count_operations(graph.model, Inputs(graph, bundle.manifest.latent.factor).sizes(*size)).total
    batch, height, width = size
    latent = bundle.manifest.latent
    ends = batch * height * width * (3 + 4 * latent.channels / latent.factor**2)
    half = 4 if precision == "fp32" else 2
    moved = weight_bytes(graph.model) * half / 4 + ends
    return max(operations / ceilings.product[precision], moved / ceilings.copy)
