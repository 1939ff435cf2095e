"""What a comparison of several VAEs found, as data."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from vaedeploy.quality import Finding, Quality

Verdict = Literal["compatible", "compatible with a shift", "not compatible"]

Verb = Literal["encode", "decode"]

Cause = Literal[
    "wrong scale",
    "wrong shift",
    "sign flip",
    "permuted channels",
    "colour and contrast",
    "detail",
    "another latent space",
    "another latent contract",
]


class Transform(msgspec.Struct, frozen=True):
    """What is to be done to a latent before another decoder takes it: ``z[:, order] * signs * scale + shift``.

    order: for each channel of the result, the channel that it is taken from. signs: 1 or -1, one a channel. scale:
    over 0. shift: in units of the scaled latent.
    """

    order: tuple[int, ...]
    signs: tuple[int, ...]
    scale: float
    shift: float


class Swap(msgspec.Struct, frozen=True):
    """Latents of one VAE's encoder, decoded by another one's decoder.

    encoder, decoder: the bundles. verdict, words: see ``swaps``. cause: why it is not plainly compatible. own_psnr: dB,
    of what the first VAE itself makes of those latents, against the photographs; psnr: of what the other one makes of
    them; restored_psnr: the same once ``transform`` is done to them. Each is None where there is none: equal pictures,
    no transform, another contract. findings: what is seen on most crops beside the first VAE's own pictures.
    """

    encoder: str
    decoder: str
    verdict: Verdict
    words: str
    cause: Cause | None = None
    own_psnr: float | None = None
    psnr: float | None = None
    restored_psnr: float | None = None
    transform: Transform | None = None
    findings: tuple[Finding, ...] = ()


class Reconstruction(msgspec.Struct, frozen=True):
    """A photograph, encoded and decoded by one bundle, against itself."""

    bundle: str
    picture: str
    quality: Quality
    findings: tuple[Finding, ...]


class Speed(msgspec.Struct, frozen=True):
    """Milliseconds of a whole call at one size, in pixels: median, least and most of all turns; ``problem`` says why
    there are none.
    """

    bundle: str
    backend: str
    part: Verb
    height: int
    width: int
    ms: float | None = None
    least_ms: float | None = None
    most_ms: float | None = None
    problem: str | None = None


class Summary(msgspec.Struct, frozen=True):
    """A bundle's medians over all photographs.

    psnr: dB. color: CIEDE2000, mean over pixels. chroma, contrast, detail: ratios, 1 is equal; detail: of what is 2 to
    16 pixels in size.
    """

    bundle: str
    psnr: float
    color: float
    chroma: float
    contrast: float
    detail: float


class Comparison(msgspec.Struct, frozen=True):
    """truest_color, truest_detail: bundles, of which there are several where the difference is too small to tell."""

    bundles: tuple[str, ...]
    summaries: tuple[Summary, ...]
    truest_color: tuple[str, ...]
    truest_detail: tuple[str, ...]
    speeds: tuple[Speed, ...]
    swaps: tuple[Swap, ...]
    reconstructions: tuple[Reconstruction, ...]


COLOR_TIE = 0.1
"""CIEDE2000 by which two VAEs must differ to be told apart: a tenth of what is seen side by side."""

DETAIL_TIE = 0.01
"""Share of the fine detail by which they must."""


def summarize(bundle: str, rows: list[Reconstruction]) -> Summary:
    """``rows``: those of that bundle."""

    def median(values: list[float]) -> float:
        return float(np.median(values))

    return Summary(
        bundle,
        median([math.inf if r.quality.error.psnr is None else r.quality.error.psnr for r in rows]),
        median([r.quality.color.ciede2000_mean for r in rows]),
        median([r.quality.color.chroma_ratio for r in rows]),
        median([r.quality.contrast.global_ratio for r in rows]),
        median([r.quality.detail.fine for r in rows]),
    )


def truest(summaries: tuple[Summary, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(in colour, in detail): the best one, and whoever is not told apart from it."""
    color = {s.bundle: s.color for s in summaries}
    detail = {s.bundle: abs(1 - s.detail) for s in summaries}
    return _best(color, COLOR_TIE), _best(detail, DETAIL_TIE)


def _best(distances: dict[str, float], tie: float) -> tuple[str, ...]:
    least = min(distances.values())
    return tuple(name for name, value in distances.items() if value < least + tie)
