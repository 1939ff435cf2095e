"""Two callables and golden cases -> Cases: how far a VAE's outputs are from the reference's.

The metrics are data. ``LIMITS`` says, with reasons, which limits a precision must keep. Both make the verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy.images.pixels import pixel_errors, relative_errors, to_levels
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import Precision
from vaedeploy.verify.limits import LIMITS, Limit
from vaedeploy.verify.looks import Looks
from vaedeploy.verify.report import Case
from vaedeploy.verify.words import amount, name_of

Outputs = Mapping[str, NDArray[Any]]

Judged = tuple[Precision, Sequence[Limit]]
"""The precision that a case states, and the limits that it must keep."""


class Golden(Protocol):
    """Inputs with the reference's outputs; see ``golden.GoldenCase``."""

    @property
    def name(self) -> str: ...
    @property
    def photo(self) -> NDArray[np.uint8]: ...
    @property
    def latents(self) -> Mapping[str, NDArray[np.float32]]: ...
    @property
    def image(self) -> NDArray[np.float32]: ...
    @property
    def round_trip(self) -> bool: ...
    @property
    def full(self) -> Sequence[tuple[int, int]]: ...


def verify_cases(
    goldens: Sequence[Golden],
    encode: Callable[[NDArray[np.uint8]], Outputs] | None,
    decode: Callable[[NDArray[np.float32]], Outputs] | None,
    *,
    precision: Precision = "fp32",
    limits: Sequence[Limit] | None = None,
    form: str = "",
    looks: Looks | None = None,
    progress: Progress = silent,
) -> tuple[Case, ...]:
    """Run every golden case through both callables and judge each output.

    encode: photo (B, H, W, N) uint8 -> the encoder's outputs by name. decode: latent (B, C, h, w) float32 -> the
        decoder's outputs by name. None leaves that half out, and the round trip. All photos are encoded before the
        first latent is decoded, so that a caller may hold one graph at a time.
    precision: whose limits are applied, unless ``limits`` are given. form: what ran, as ``Case.form`` and
        ``progress`` name it.
    looks: judges how the images look that the decoder makes of the reference's latents; None judges no looks.
    """
    judged = precision, LIMITS[precision] if limits is None else limits
    trips = [g for g in goldens if g.round_trip and encode and decode]
    halves = sum(half is not None for half in (encode, decode))
    total, done, cases = halves * len(goldens) + len(trips), 0, []
    only = "graphs" if encode and decode else "encoder" if encode else "decoder"
    what = f"Verifying the {form} {only}" if form else "Verifying"
    progress(what, done, total)
    encoded: dict[str, NDArray[np.float32]] = {}
    if encode is not None:
        for golden in goldens:
            outputs, seconds = _timed(encode, golden.photo)
            encoded[golden.name] = outputs[next(iter(golden.latents))]
            share = seconds / len(golden.latents)
            cases += [_judge_latent(golden, name, outputs[name], form, judged, share) for name in golden.latents]
            progress(what, done := done + 1, total)
    if decode is not None:
        for golden in goldens:
            outputs, seconds = _timed(decode, golden.latents[next(iter(golden.latents))])
            case = _judge_image("decoder", golden, outputs, form, judged, seconds)
            if looks is not None and outputs["image"].shape == golden.image.shape:
                findings = looks.see(form, golden.name, golden.image, outputs["image"], golden.full)
                case = msgspec.structs.replace(case, findings=findings)
            cases.append(case)
            progress(what, done := done + 1, total)
        for golden in trips:
            outputs, seconds = _timed(decode, encoded[golden.name])
            cases.append(_judge_image("round trip", golden, outputs, form, judged, seconds))
            progress(what, done := done + 1, total)
    return tuple(cases)


def _timed(call: Callable[[Any], Outputs], value: NDArray[Any]) -> tuple[Outputs, float]:
    """What ``call`` gives, and the seconds that it took."""
    begun = time.perf_counter()
    outputs = call(value)
    return outputs, time.perf_counter() - begun


def _judge_latent(golden: Golden, name: str, found: NDArray[Any], form: str, judged: Judged, seconds: float) -> Case:
    expected = golden.latents[name]
    metrics = {**relative_errors(found, expected), "seconds": seconds}
    return _case("encoder", golden, name, form, metrics, _shape_failures(found, expected), judged)


def _judge_image(
    part: Literal["decoder", "round trip"],
    golden: Golden,
    outputs: Outputs,
    form: str,
    judged: Judged,
    seconds: float,
) -> Case:
    """Judge ``image``, ``image_u8`` (against the reference's own 8-bit pixels) and ``finite`` as one case."""
    failures = _shape_failures(outputs["image"], golden.image)
    metrics = {**relative_errors(outputs["image"], golden.image), "seconds": seconds}
    expected = to_levels(golden.image)
    if outputs["image_u8"].shape != expected.shape:
        failures += [f"image_u8 has shape {outputs['image_u8'].shape}, expected {expected.shape}"]
    else:
        metrics |= pixel_errors(outputs["image_u8"], expected)
    finite = outputs["finite"].tolist()
    expected_finite = np.isfinite(outputs["image"]).all(axis=(1, 2, 3)).tolist()
    if finite != expected_finite:
        failures += [f"finite says {finite}, the image says {expected_finite}"]
    return _case(part, golden, "image", form, metrics, failures, judged)


def _case(
    part: Literal["encoder", "decoder", "round trip"],
    golden: Golden,
    output: str,
    form: str,
    metrics: dict[str, Any],
    failures: list[str],
    judged: Judged,
) -> Case:
    """The case, with one more failure for each limit that ``metrics`` miss."""
    precision, limits = judged
    for limit in limits:
        value = metrics.get(limit.metric)
        if not limit.allows(value):
            name = name_of(limit.metric)
            failures = [*failures, f"{name} is {amount(limit.metric, value)}; it must be {limit.words}"]
    batch, height, width, _ = golden.photo.shape
    return Case(
        part, golden.name, output, form, batch, height, width, **metrics, failures=tuple(failures), precision=precision
    )


def _shape_failures(found: NDArray[Any], expected: NDArray[Any]) -> list[str]:
    return [] if found.shape == expected.shape else [f"shape is {found.shape}, expected {expected.shape}"]
