"""The swap matrix: latents of each VAE decoded by every other one, and the cause where that goes wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy.images.opacity import as_seen
from vaedeploy.images.photos import Photo
from vaedeploy.images.pixels import pixel_errors
from vaedeploy.page import Strip
from vaedeploy.pipeline.compare.result import Cause, Swap, Transform, Verdict
from vaedeploy.pipeline.compare.shown import least_psnr, plain_psnr
from vaedeploy.pipeline.compare.transform import Latent, apply, causes, find_transform, fit_transform
from vaedeploy.pipeline.compare.words import broken_words, is_better, swap_words
from vaedeploy.quality import Finding, Quality, find_faults, measure_quality
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.latent import RGB, LatentSpec
from vaedeploy.values.words import counted

WHAT = "Swapping decoders"

SWAP_SIDE = 256
"""Photographs are shrunk to this side, in pixels, before decoders are swapped on them."""

SWAP_PHOTOS = 4
"""How many photographs these are, chosen evenly from all."""

MARGIN_PSNR = 1.0
"""dB of PSNR that another decoder may lose against the encoder's own and still be compatible: less than VAEs of one
family differ by on single photographs.
"""

MARGIN_COLOR = 0.5
"""CIEDE2000, mean over pixels, by which another decoder's colours may be worse and still be compatible. It is a choice,
under what is seen side by side.
"""

MARGIN_SHIFT = 3.0
"""dB of PSNR that may be missing once a shift is undone: beyond that, half of the error or more has another cause."""

GAIN = 0.5
"""dB of PSNR that undoing a shift must gain for the shift to be called the cause."""

TONE = ("color.", "contrast.")
"""The first letters of the metrics of colour and contrast, which a wrong scale changes."""

PIECE = 16
"""Side, in elements of the latent, of the squares that transforms are tried on."""


class Autoencoder(Protocol):
    """What the swap matrix needs of a VAE; see ``runtime.VAE``."""

    @property
    def latent(self) -> LatentSpec: ...
    def encode(self, image: Any) -> Any: ...
    def decode(self, latent: Any) -> Any: ...


@dataclass(frozen=True)
class _Reconstructions:
    """What a VAE makes of each crop: the latent (1, C, h, w), the image (H, W, N) that its own decoder makes of that
    latent, and the quality of that image against the crop.

    psnr: of all the images, in dB.
    """

    latents: list[Latent]
    pictures: list[Photo]
    at_photos: list[Quality]
    psnr: float


def swap_matrix(
    vaes: Mapping[str, Autoencoder], crops: Sequence[Photo], progress: Progress = silent
) -> tuple[tuple[Swap, ...], tuple[Strip, ...]]:
    """Judge every pair of two different VAEs, both ways. Returns the swaps, and for each the images of the first crop.

    A VAE whose own decoder misreads its latents is listed too, as a pair with itself.

    crops: (H, W, N) uint8 each, as all the VAEs take them; every VAE's factor divides their sides.
    """
    pairs = [(a, b) for a in vaes for b in vaes]
    progress(WHAT, 0, len(pairs))
    reconstructions = {name: _reconstruct(vae, crops) for name, vae in vaes.items()}
    swaps, strips = [], []
    for done, (a, b) in enumerate(pairs, 1):
        swap, pictures = _judge(a, b, vaes, reconstructions, crops)
        if a != b or swap.cause:
            swaps.append(swap)
            strips.append(Strip(f"{a} into {b}: {swap.verdict}", swap.words, (("photograph", crops[0]), *pictures)))
        progress(WHAT, done, len(pairs))
    return tuple(swaps), tuple(strips)


def _reconstruct(vae: Autoencoder, crops: Sequence[Photo]) -> _Reconstructions:
    latents = [vae.encode(crop) for crop in crops]
    pictures = _decode(vae, latents)
    return _Reconstructions(latents, pictures, _measure(crops, pictures, vae.latent), _psnr(pictures, crops))


def _judge(
    encoder: str,
    decoder: str,
    vaes: Mapping[str, Autoencoder],
    reconstructions: Mapping[str, _Reconstructions],
    crops: Sequence[Photo],
) -> tuple[Swap, tuple[tuple[str, Photo], ...]]:
    """One swap, and its images of the first crop, each with what it is."""
    specs = vaes[encoder].latent, vaes[decoder].latent
    contracts = [f"{counted(spec.channels, 'channel')} at 1/{spec.factor} of the size" for spec in specs]
    if contracts[0] != contracts[1]:
        words = f"{encoder} has latents of {contracts[0]}, {decoder} of {contracts[1]}: they cannot be exchanged."
        return Swap(encoder, decoder, "not compatible", words, "another latent contract"), ()
    of_encoder = reconstructions[encoder]
    pictures = of_encoder.pictures if encoder == decoder else _decode(vaes[decoder], of_encoder.latents)
    at_photos = of_encoder.at_photos if encoder == decoder else _measure(crops, pictures, specs[0])
    psnr, own_psnr = _psnr(pictures, crops), of_encoder.psnr
    truth = encoder == decoder or is_better(psnr, own_psnr)
    beside = at_photos if truth else _measure(of_encoder.pictures, pictures, specs[0])
    findings = _common([find_faults(quality) for quality in beside])
    lost_color = _color(at_photos) - _color(of_encoder.at_photos)
    shown = [(f"{encoder} by itself", of_encoder.pictures[0]), (f"its latent by {decoder}", pictures[0])]
    diagnosis = _Diagnosis("compatible")
    if encoder == decoder:
        shown = shown[:1]
        if _off_tone(at_photos):
            diagnosis = (
                _find_transform(vaes[encoder], vaes[decoder], of_encoder, of_encoder, pictures, crops) or diagnosis
            )
    elif (
        psnr < own_psnr - MARGIN_PSNR
        or lost_color > MARGIN_COLOR
        or _off_tone(at_photos) - _off_tone(of_encoder.at_photos)
    ):
        diagnosis = _find_transform(
            vaes[encoder], vaes[decoder], of_encoder, reconstructions[decoder], pictures, crops
        ) or _diagnose_pictures(of_encoder, pictures, crops)
    restored_psnr = _psnr(diagnosis.changed, crops) if diagnosis.changed else None
    least = least_psnr(crops)
    broken = {name: own for name in (encoder, decoder) if (own := reconstructions[name].psnr) < least}
    if broken and max(psnr, restored_psnr or psnr) < least:
        # The margins compare images that show the photographs; between two that do not, either may come out ahead.
        if encoder != decoder:
            words = broken_words(encoder, decoder, broken, plain_psnr(crops))
            levels = _finite(own_psnr), _finite(psnr)
            shown.append((f"{decoder} by itself", reconstructions[decoder].pictures[0]))
            return Swap(encoder, decoder, "cannot be judged", words, "broken by itself", *levels), tuple(shown)
        diagnosis, restored_psnr = _Diagnosis("compatible"), None
    if diagnosis.changed:
        shown.append(("the same, corrected", diagnosis.changed[0]))
    swap = Swap(
        encoder,
        decoder,
        diagnosis.verdict,
        "",
        diagnosis.cause,
        _finite(own_psnr),
        _finite(psnr),
        None if restored_psnr is None else _finite(restored_psnr),
        diagnosis.transform,
        findings,
    )
    return msgspec.structs.replace(swap, words=swap_words(swap, beside)), tuple(shown)


@dataclass(frozen=True)
class _Diagnosis:
    """A verdict with its cause. changed: what the decoder makes of the latents after ``transform`` is applied."""

    verdict: Verdict
    cause: Cause | None = None
    transform: Transform | None = None
    changed: Sequence[Photo] = ()


def _find_transform(
    encoder: Autoencoder,
    decoder: Autoencoder,
    of_encoder: _Reconstructions,
    of_decoder: _Reconstructions,
    pictures: Sequence[Photo],
    crops: Sequence[Photo],
) -> _Diagnosis | None:
    """The transform that makes the decoder understand the encoder's latents; None if there is none.

    It is guessed in two ways. First, the other VAE's latents of the same photographs show how its latent space relates
    to this one's. Second, this VAE's encoder, given the image that the other decoder made of a latent, shows which
    latent the decoder took it for.
    """
    factor = encoder.latent.factor
    latents, theirs, taken = (
        np.concatenate(_pieces(z, PIECE))
        for z in (of_encoder.latents, of_decoder.latents, [encoder.encode(picture) for picture in pictures])
    )
    guesses = [
        fit_transform(source, target, straight=straight)
        for source, target in ((latents, theirs), (taken, latents))
        for straight in (True, False)
    ]
    # Moved to the axes of latents, so that the same places are cut from photographs and latents.
    photos = [crop.transpose(2, 0, 1)[None] for crop in crops]
    wanted = [piece[0].transpose(1, 2, 0) for piece in _pieces(photos, PIECE, factor)]
    best = find_transform(guesses, lambda t: _psnr(list(decoder.decode(apply(t, latents))), wanted))
    changed = _decode(decoder, [apply(best, latent) for latent in of_encoder.latents])
    found = causes(best)
    needed = max(_psnr(pictures, crops) + GAIN, of_encoder.psnr - MARGIN_SHIFT)
    if not found or _psnr(changed, crops) < needed:
        return None
    verdict: Verdict = "not compatible" if found[0] in ("permuted channels", "sign flip") else "compatible with a shift"
    return _Diagnosis(verdict, found[0], best, changed)


def _diagnose_pictures(of_encoder: _Reconstructions, pictures: Sequence[Photo], crops: Sequence[Photo]) -> _Diagnosis:
    """The diagnosis where no transform of the latents helps: other colours, less detail, or another latent space."""
    psnr, own_psnr = _psnr(pictures, crops), of_encoder.psnr
    mapped = _psnr(_map_colors(pictures, of_encoder.pictures), crops)
    if mapped >= max(psnr + GAIN, own_psnr - MARGIN_SHIFT) or psnr >= own_psnr - MARGIN_PSNR:
        # With the PSNR within its margin, only colour can have led here.
        return _Diagnosis("compatible with a shift", "colour and contrast")
    if psnr >= own_psnr - MARGIN_SHIFT:
        return _Diagnosis("compatible with a shift", "detail")
    return _Diagnosis("not compatible", "another latent space")


def _pieces(arrays: Sequence[NDArray[Any]], side: int, factor: int = 1) -> list[NDArray[Any]]:
    """The middle square of each (1, C, h, w), of ``side`` or, if that is less, the shortest side of all.

    factor: the pixels of an image per element of its latent. Sides and places are counted in elements, so that images
    are cut where their latents are.
    """
    sides = [[n // factor for n in array.shape[2:]] for array in arrays]
    side = min(side, *(n for pair in sides for n in pair))
    corners = [[(n - side) // 2 * factor for n in pair] for pair in sides]
    pixels = side * factor
    return [a[:, :, y : y + pixels, x : x + pixels] for a, (y, x) in zip(arrays, corners, strict=True)]


def _decode(vae: Autoencoder, latents: Sequence[Latent]) -> list[Photo]:
    return [vae.decode(latent)[0] for latent in latents]


def _psnr(found: Sequence[Photo], expected: Sequence[Photo]) -> float:
    """PSNR in dB of all images together, ``as_seen``; infinite where they are equal."""
    flat = (np.concatenate([as_seen(a).reshape(-1) for a in arrays]) for arrays in (found, expected))
    value = pixel_errors(*flat)["psnr"]
    return math.inf if value is None else float(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _measure(expected: Sequence[Photo], found: Sequence[Photo], spec: LatentSpec) -> list[Quality]:
    return [measure_quality(e, f, factor=spec.factor) for e, f in zip(expected, found, strict=True)]


def _color(qualities: Sequence[Quality]) -> float:
    return float(np.mean([quality.color.ciede2000_mean for quality in qualities]))


def _map_colors(found: Sequence[Photo], expected: Sequence[Photo]) -> list[Photo]:
    """``found`` after the affine map of RGB, one for all pixels, that brings it nearest to ``expected``.

    Opacity stays.
    """
    colors, wanted = (
        np.concatenate([a[..., :RGB].reshape(-1, RGB) for a in arrays]).astype(float) for arrays in (found, expected)
    )
    solution = np.linalg.lstsq(np.c_[colors, np.ones(len(colors))], wanted, rcond=None)[0]
    mapped = (f[..., :RGB].astype(float) @ solution[:RGB] + solution[RGB] for f in found)
    levels = (np.rint(m).clip(0, 255).astype(np.uint8) for m in mapped)
    return [np.concatenate([m, f[..., RGB:]], axis=-1) for m, f in zip(levels, found, strict=True)]


def _off_tone(qualities: Sequence[Quality]) -> set[str]:
    """The names of the faults of colour and contrast that show on most crops."""
    return {f.name for f in _common([find_faults(q) for q in qualities]) if f.metric.startswith(TONE)}


def _common(found: Sequence[tuple[Finding, ...]]) -> tuple[Finding, ...]:
    """The faults that show on most crops, worst first, each with the words of the crop of median severity."""
    by_name: dict[str, list[Finding]] = {}
    for finding in sorted((f for findings in found for f in findings), key=lambda f: -f.severity):
        by_name.setdefault(finding.name, []).append(finding)
    usual = [same[len(same) // 2] for same in by_name.values() if len(same) * 2 > len(found)]
    return tuple(sorted(usual, key=lambda f: -f.severity))
