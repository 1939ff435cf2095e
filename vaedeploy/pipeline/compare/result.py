"""The result of a comparison of several VAEs, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from vaedeploy.images.cut import Cut
from vaedeploy.quality import Finding, Quality

Verdict = Literal["compatible", "compatible with a shift", "not compatible", "cannot be judged"]

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
    "broken by itself",
]


class Transform(msgspec.Struct, frozen=True):
    """The change that makes a latent z fit another decoder: ``z[:, order] * signs * scale + shift``.

    order: for each channel of the result, the channel of z that it is taken from. signs: 1 or -1 for each channel of
    the result. scale: over 0. shift: in units of the scaled latent.
    """

    order: tuple[int, ...]
    signs: tuple[int, ...]
    scale: float
    shift: float


class Swap(msgspec.Struct, frozen=True):
    """Latents of one VAE's encoder, decoded by another one's decoder.

    encoder, decoder: the bundles.
    verdict: whether the decoder can take those latents. words: the same in sentences, see ``swap_words``.
    cause: why the two are not plainly compatible; None where they are. "broken by itself": one VAE or both cannot show
        the photographs even without a swap, and the swapped images do not show them either.
    own_psnr, psnr, restored_psnr: PSNR in dB against the photographs: of the images from the encoder's own VAE, of
        those from the other decoder, and of those from the other decoder after ``transform``. None where the images are
        equal, where there is no transform, and where the latent contracts differ.
    transform: what puts the latents right; None where there is no need for one or none helps.
    findings: faults that most crops show in comparison with the images of the encoder's own VAE; in comparison with
        the photographs where those images are worse, since faults of theirs would be told of the better ones.
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
    """How a photograph that one bundle encoded and decoded compares with the original.

    picture: the photograph's name.
    """

    bundle: str
    picture: str
    quality: Quality
    findings: tuple[Finding, ...]


class Speed(msgspec.Struct, frozen=True):
    """How long whole calls of one bundle take.

    height, width: of the image, in pixels; half of the usual ones where VAEs are slow. ms, least_ms, most_ms: the
    median, the least and the most over all rounds, in milliseconds per call. rounds: how many there were: five, or
    fewer where VAEs are slow. problem: why there are no figures; None where there are.
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
    rounds: int = 0


class Summary(msgspec.Struct, frozen=True, omit_defaults=True):
    """A bundle's medians over all photographs.

    psnr: dB. color: CIEDE2000, mean over pixels. chroma, contrast, detail: ratios to the photograph, where 1 is equal;
    detail counts what is 2 to 16 pixels in size. opacity: mean absolute difference in levels of 255; None where images
    without opacity were compared. lpips, dists: means, not medians, see ``quality.Perceptual``; None where left out.
    """

    bundle: str
    psnr: float
    color: float
    chroma: float
    contrast: float
    detail: float
    opacity: float | None = None
    lpips: float | None = None
    dists: float | None = None


class Comparison(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of ``compare_bundles``.

    truest_color, truest_detail: the best bundle, or several where the difference between them is too small to tell;
        none where all are broken.
    broken: bundles whose own images do not show most of the photographs, as with random or damaged weights: their PSNR
        is below 20 dB, and less than 3 dB above that of plain pictures of the photographs' mean colours.
    flattened: bundles of RGBA images that were compared with some of RGB images: given opaque photographs, and judged
        by how their images look in front of white.
    speeds: of each bundle, to encode and to decode; empty where timing was left out.
    left_out: sentences on the metrics that were not measured, because their packages or weights are not here.
    failures: a sentence for each photograph that was not compared, because it cannot be read.
    cuts: the part that was compared, for each photograph that was cut.
    """

    bundles: tuple[str, ...]
    summaries: tuple[Summary, ...]
    truest_color: tuple[str, ...]
    truest_detail: tuple[str, ...]
    speeds: tuple[Speed, ...]
    swaps: tuple[Swap, ...]
    reconstructions: tuple[Reconstruction, ...]
    flattened: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()

    @property
    def timed(self) -> tuple[Verb, ...]:
        """What was timed: to encode and to decode, or nothing."""
        return tuple(dict.fromkeys(speed.part for speed in self.speeds))


COLOR_TIE = 0.1
"""CIEDE2000 by which the colours of two VAEs must differ to be told apart. It is a choice, far under what is seen."""

DETAIL_TIE = 0.01
"""Share (0 to 1) of the fine detail by which two VAEs must differ to be told apart."""


def summarize(bundle: str, rows: list[Reconstruction]) -> Summary:
    """The medians of ``rows``, the reconstructions of one bundle."""

    def median(values: list[float]) -> float:
        return float(np.median(values))

    return Summary(
        bundle,
        median([math.inf if r.quality.error.psnr is None else r.quality.error.psnr for r in rows]),
        median([r.quality.color.ciede2000_mean for r in rows]),
        median([r.quality.color.chroma_ratio for r in rows]),
        median([r.quality.contrast.global_ratio for r in rows]),
        median([r.quality.detail.fine for r in rows]),
        median(opacities) if (opacities := [r.quality.opacity.mean_abs for r in rows if r.quality.opacity]) else None,
        *mean_perceptual(rows),
    )


def mean_perceptual(rows: Sequence[Reconstruction]) -> tuple[float | None, float | None]:
    """The means of LPIPS and DISTS; None for one that was left out."""
    seen = [row.quality.perceptual for row in rows if row.quality.perceptual]
    lpips, dists = [s.lpips for s in seen if s.lpips is not None], [s.dists for s in seen if s.dists is not None]
    return float(np.mean(lpips)) if lpips else None, float(np.mean(dists)) if dists else None


def truest(summaries: tuple[Summary, ...], broken: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(in colour, in detail): the best bundle that is not broken, and every one that cannot be told apart from it."""
    judged = [s for s in summaries if s.bundle not in broken]
    color = {s.bundle: s.color for s in judged}
    detail = {s.bundle: abs(1 - s.detail) for s in judged}
    return _best(color, COLOR_TIE), _best(detail, DETAIL_TIE)


def _best(distances: dict[str, float], tie: float) -> tuple[str, ...]:
    least = min(distances.values(), default=0.0)
    return tuple(name for name, value in distances.items() if value < least + tie)
