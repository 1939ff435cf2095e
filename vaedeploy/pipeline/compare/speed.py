"""How long calls of several VAEs take: timed in turns, within a share of the comparison's time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from vaedeploy.images.photos import Photo, crop_batch
from vaedeploy.pipeline.compare.opacity import OnWhite
from vaedeploy.pipeline.compare.result import Speed, Verb
from vaedeploy.pipeline.turns import WARM, milliseconds, take_rounds, warm_up
from vaedeploy.runtime import VAE
from vaedeploy.system.progress import Progress
from vaedeploy.values.trials import MOST_LATENTS

SIDE = 512
"""Side, in pixels, of the image that is timed, rounded down to a multiple of the factors; less for factors below 4, see
``MOST_LATENTS``. VAEs that are slow here get half of it.
"""

ROUNDS = 5
"""The most turns that each VAE has in the timing."""

FEWEST = 3
"""There must be time for this many rounds at the larger side: the median of three is not the one that was disturbed."""

SHARE = 0.5
"""The time for the timing, as a share of what the comparison took before it; of both together it is a third."""

LEAST = 5.0
"""The least seconds that the timing has."""

Calls = dict[tuple[Verb, str], Callable[[], Any]]


def time_vaes(
    vaes: Mapping[str, VAE | OnWhite],
    photos: Sequence[Photo],
    factor: int,
    channels: int,
    spent: float,
    progress: Progress,
) -> tuple[Speed, ...]:
    """Time all VAEs in turns, so that whatever disturbs one of them disturbs all.

    photos: (H, W, N) uint8 each. factor, channels: of the images that all VAEs take. spent: seconds that the comparison
    has taken so far.
    """
    started = time.perf_counter()
    budget = max(LEAST, SHARE * spent)
    largest = min(SIDE, MOST_LATENTS * min(vae.latent.factor for vae in vaes.values()))
    whole, half = (max(pixels // factor, 1) * factor for pixels in (largest, largest // 2))
    progress("Timing", 0, 2)
    side = half
    calls = _calls(vaes, crop_batch(list(photos), 1, side, side, channels=channels))
    seconds, problems = warm_up(calls, 1)
    needed = (WARM + 1 + FEWEST) * sum(seconds.values()) * (whole / half) ** 2
    # Where half the side fails, for example because no engine takes it, the whole side may work.
    if problems or needed <= budget - (time.perf_counter() - started):
        side = whole
        calls = _calls(vaes, crop_batch(list(photos), 1, side, side, channels=channels))
        seconds, problems = warm_up(calls, WARM)
    progress("Timing", 1, 2)
    times = take_rounds(calls, seconds, ROUNDS, budget - (time.perf_counter() - started))
    progress("Timing", 2, 2)
    rows = []
    for part, name in calls:
        row = Speed(name, vaes[name].backend, part, side, side, problem=problems.get((part, name)))
        if taken := times.get((part, name)):
            row = msgspec.structs.replace(row, rounds=len(taken), **milliseconds(taken))
        rows.append(row)
    return tuple(rows)


def _calls(vaes: Mapping[str, VAE | OnWhite], photo: Photo) -> Calls:
    """Calls that encode ``photo``, (1, H, W, N), and that decode latents of its size, which are random."""
    _, height, width, _ = photo.shape
    rng = np.random.default_rng(0)
    calls: Calls = {("encode", name): functools.partial(vae.encode, photo) for name, vae in vaes.items()}
    for name, vae in vaes.items():
        shape = (1, vae.latent.channels, height // vae.latent.factor, width // vae.latent.factor)
        calls["decode", name] = functools.partial(vae.decode, rng.standard_normal(shape, np.float32))
    return calls
