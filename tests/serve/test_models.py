"""A served VAE's line: which calls are large."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from vaedeploy.runtime import VAE
from vaedeploy.serve.metrics import Metrics
from vaedeploy.serve.models import make_models
from vaedeploy.serve.settings import Settings
from vaedeploy.values.kinds import Part

SMALL = np.zeros((1, 2, 64, 63), np.float32)
LARGE = np.zeros((1, 2, 64, 64), np.float32)


def started(monkeypatch: pytest.MonkeyPatch, vae: VAE, part: Part, arrays: Iterable[np.ndarray]) -> tuple[int, int]:
    """How many requests for ``arrays`` run at once in the line of a served ``vae``, and how many wait."""
    go = threading.Event()

    def compute(part: Part, array: np.ndarray, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        assert go.wait(30)
        return {}

    monkeypatch.setattr(vae, "compute", compute)
    line = make_models({"tiny": vae}, Settings(), Metrics())["tiny-encode"].line

    async def work() -> tuple[int, int]:
        waiting = [line.compute(part, array, ["image"]) for array in arrays]
        found = line.running, line.waiting
        go.set()
        await asyncio.gather(*waiting)
        return found

    try:
        return asyncio.run(work())
    finally:
        line.close()


@pytest.mark.parametrize(
    ("part", "small", "large"),
    [
        ("decoder", SMALL, LARGE),
        ("decoder", SMALL[..., :32], np.repeat(LARGE[..., :32], 2, axis=0)),
        ("encoder", np.zeros((1, 3, 256, 252), np.float32), np.zeros((1, 3, 256, 256), np.float32)),
        ("encoder", np.zeros((1, 252, 256, 3), np.uint8), np.zeros((1, 256, 256, 3), np.uint8)),
    ],
    ids=["latent", "batch", "image", "image_u8"],
)
def test_images_of_256_pixels_squared_take_turns_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, bundle, part: Part, small: np.ndarray, large: np.ndarray
):
    with VAE(bundle) as vae:
        assert started(monkeypatch, vae, part, (large, small, large, small)) == (3, 1)


@pytest.mark.parametrize(
    ("cores", "threads", "at_once"), [(2, None, 1), (2, 1, 2), (8, None, 1), (16, None, 2), (16, 2, 8), (1, 4, 1)]
)
def test_large_calls_share_the_cores(monkeypatch: pytest.MonkeyPatch, bundle, cores: int, threads: int, at_once: int):
    for module in ("serve.models", "runtime.vae"):
        monkeypatch.setattr(f"vaedeploy.{module}.usable_cores", lambda: cores)
    with VAE(bundle, threads=threads) as vae:
        assert started(monkeypatch, vae, "decoder", [LARGE] * 16) == (at_once, 16 - at_once)
