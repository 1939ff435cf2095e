"""Two callables and golden cases -> Report: how far a VAE's outputs are from PyTorch's in float64.

Metrics are data; ``LIMITS`` says, with reasons, which of them a precision must keep, and the verdict is made from both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy.manifest import Precision, Verification
from vaedeploy.metrics import WORDS, amount
from vaedeploy.progress import Progress, silent

Outputs = Mapping[str, NDArray[Any]]
Metric = Literal["rel_l2", "max_levels", "within_one_level", "psnr"]


class Limit(msgspec.Struct, frozen=True):
    """What a metric may be at most (``upper``) or must be at least, and why."""

    metric: Metric
    bound: float
    upper: bool
    reason: str

    def allows(self, value: float | None) -> bool:
        """Whether ``value`` keeps the limit. None, a metric that the case does not have, does; NaN does not."""
        return value is None or (value <= self.bound if self.upper else value >= self.bound)

    @property
    def words(self) -> str:
        """Such as ``at most 1 of 255 levels``."""
        return f"at {'most' if self.upper else 'least'} {amount(self.metric, self.bound)}"


LIMITS: dict[Precision, tuple[Limit, ...]] = {
    "fp32": (
        Limit("rel_l2", 2e-5, True, "PyTorch's own float32 is 1e-6 to 3e-6 off float64; several times that is a fault"),
        Limit("max_levels", 1, True, "a value on the edge of two levels may fall either way, and no further"),
    ),
    "fp16": (
        Limit("rel_l2", 5e-3, True, "half precision rounds to 5e-4; ten times that is a fault, not rounding"),
        Limit("within_one_level", 0.999, False, "one level of 255 is not seen; one pixel in a thousand may exceed it"),
    ),
    "bf16": (
        Limit("rel_l2", 3e-2, True, "bfloat16 rounds to 4e-3; some times that adds up over a hundred layers"),
        Limit("psnr", 40.0, False, "in dB; differences are not seen above 40"),
    ),
}


def limits_line(precision: Precision) -> str:
    """The limits of a precision, in words."""
    told = ", ".join(f"{WORDS[limit.metric][0].lower()} {limit.words}" for limit in LIMITS[precision])
    return f"Limits of {precision}: {told}"


class Case(msgspec.Struct, frozen=True):
    """One output at one shape, and how far it is from the reference.

    part: ``encoder`` and ``decoder`` by themselves, or ``round trip`` (image -> latent -> image).
    name: the case's name; output: the graph's output that was compared; form: which form of the graph ran.
    batch, height, width: items, and pixels.
    max_abs, mean_abs: absolute error, in the output's own units (an image spans 2).
    rel_l2: norm of the error over norm of the reference.
    psnr: dB, of 8-bit pixels; None where there are no pixels or not one differs.
    pixels_off, within_one_level: shares (0 to 1) of 8-bit values that differ at all, and by no more than one level.
    max_levels: the largest difference of an 8-bit value.
    failures: a sentence for each limit that was missed.
    findings: what a person would see beside the reference's picture, a sentence each. They fail nothing by themselves:
        the limits are stricter, and say why. None where the output was not looked at.
    precision: whose limits it had to keep.
    """

    part: Literal["encoder", "decoder", "round trip"]
    name: str
    output: str
    form: str
    batch: int
    height: int
    width: int
    max_abs: float
    mean_abs: float
    rel_l2: float
    psnr: float | None = None
    pixels_off: float | None = None
    within_one_level: float | None = None
    max_levels: int | None = None
    failures: tuple[str, ...] = ()
    findings: tuple[str, ...] | None = None
    precision: Precision = "fp32"

    @property
    def passed(self) -> bool:
        return not self.failures


class Report(msgspec.Struct, frozen=True):
    """The verdict on a bundle, and what it was made from.

    reference: where the outputs that were compared with came from. backend: who computed the others.
    """

    precision: Precision
    reference: str
    backend: str
    cases: tuple[Case, ...]

    @property
    def passed(self) -> bool:
        return bool(self.cases) and all(case.passed for case in self.cases)

    @property
    def worst(self) -> dict[str, float]:
        """Each metric's worst value over all cases; NaN where one is."""
        names = ("max_abs", "rel_l2", "max_levels", "pixels_off")
        upper = {name: float(np.max(_present(self.cases, name), initial=0.0)) for name in names}
        return upper | {"psnr": float(np.min(_present(self.cases, "psnr"), initial=math.inf))}

    def to_document(self) -> dict[str, Any]:
        """The report with its verdict, in builtins."""
        document: dict[str, Any] = {"passed": self.passed} | msgspec.to_builtins(self)
        for built, case in zip(document["cases"], self.cases, strict=True):
            built["passed"] = case.passed
        return document

    def to_json(self) -> bytes:
        """One JSON document: the report with its verdict."""
        return msgspec.json.format(msgspec.json.encode(self.to_document()), indent=2)


class Golden(Protocol):
    """A case with its reference outputs; see ``golden.GoldenCase``."""

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


Look = Callable[[str, Golden, NDArray[Any]], tuple[str, ...] | None]
"""(form, case, image (B, 3, H, W) float of the case's shape) -> findings; see ``report.Looks``."""


def look_away(form: str, golden: Golden, image: NDArray[Any]) -> None:
    """See nothing."""


def verify_cases(
    goldens: Sequence[Golden],
    encode: Callable[[NDArray[np.uint8]], Outputs] | None,
    decode: Callable[[NDArray[np.float32]], Outputs] | None,
    *,
    precision: Precision = "fp32",
    form: str = "",
    look: Look = look_away,
    progress: Progress = silent,
) -> tuple[Case, ...]:
    """Run every golden case through both callables and judge each output.

    encode: photo (B, H, W, 3) uint8 -> the encoder graph's outputs by name; decode: latent (B, C, h, w) float32 -> the
    decoder graph's; None leaves that half out, and the round trip. All photos are encoded before the first latent is
    decoded, so that a caller may hold one graph at a time. look: what a person would see in the images that the decoder
    alone makes.
    """
    trips = [g for g in goldens if g.round_trip and encode and decode]
    halves = sum(half is not None for half in (encode, decode))
    total, done, cases = halves * len(goldens) + len(trips), 0, []
    only = "graphs" if encode and decode else "encoder" if encode else "decoder"
    what = f"Verifying the {form} {only}" if form else "Verifying"
    progress(what, done, total)
    encoded: dict[str, NDArray[np.float32]] = {}
    if encode is not None:
        for golden in goldens:
            outputs = encode(golden.photo)
            encoded[golden.name] = outputs[next(iter(golden.latents))]
            cases += [_judge_latent(golden, name, outputs[name], form, precision) for name in golden.latents]
            progress(what, done := done + 1, total)
    if decode is not None:
        for golden in goldens:
            outputs = decode(golden.latents[next(iter(golden.latents))])
            case = _judge_image("decoder", golden, outputs, form, precision)
            if outputs["image"].shape == golden.image.shape:
                case = msgspec.structs.replace(case, findings=look(form, golden, outputs["image"]))
            cases.append(case)
            progress(what, done := done + 1, total)
        for golden in trips:
            cases.append(_judge_image("round trip", golden, decode(encoded[golden.name]), form, precision))
            progress(what, done := done + 1, total)
    return tuple(cases)


def summary(report: Report) -> Verification:
    """What a manifest keeps of a report."""
    return Verification(report.passed, report.reference, report.backend, report.worst, len(report.cases))


def to_levels(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8: ``round((x + 1) * 127.5)``, clamped. NaN becomes 0."""
    levels = np.nan_to_num(np.round((image + 1) * 127.5), nan=0.0).clip(0, 255)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1)).astype(np.uint8)


def _judge_latent(golden: Golden, name: str, found: NDArray[Any], form: str, precision: Precision) -> Case:
    expected = golden.latents[name]
    metrics = relative_errors(found, expected)
    return _case("encoder", golden, name, form, metrics, _shape_failures(found, expected), precision)


def _judge_image(
    part: Literal["decoder", "round trip"], golden: Golden, outputs: Outputs, form: str, precision: Precision
) -> Case:
    """Judge ``image``, ``image_u8`` (against the reference's own 8-bit pixels) and ``finite`` as one case."""
    failures = _shape_failures(outputs["image"], golden.image)
    metrics = relative_errors(outputs["image"], golden.image)
    expected = to_levels(golden.image)
    if outputs["image_u8"].shape != expected.shape:
        failures += [f"image_u8 has shape {outputs['image_u8'].shape}, expected {expected.shape}"]
    else:
        metrics |= pixel_errors(outputs["image_u8"], expected)
    told = outputs["finite"].tolist()
    true = np.isfinite(outputs["image"]).all(axis=(1, 2, 3)).tolist()
    if told != true:
        failures += [f"finite says {told}, the image says {true}"]
    return _case(part, golden, "image", form, metrics, failures, precision)


def _case(
    part: Literal["encoder", "decoder", "round trip"],
    golden: Golden,
    output: str,
    form: str,
    metrics: dict[str, Any],
    failures: list[str],
    precision: Precision,
) -> Case:
    for limit in LIMITS[precision]:
        value = metrics.get(limit.metric)
        if not limit.allows(value):
            name = WORDS[limit.metric][0].lower()
            failures = [*failures, f"{name} is {amount(limit.metric, value)}; it must be {limit.words}"]
    batch, height, width, _ = golden.photo.shape
    return Case(
        part, golden.name, output, form, batch, height, width, **metrics, failures=tuple(failures), precision=precision
    )


def relative_errors(found: NDArray[Any], expected: NDArray[Any]) -> dict[str, Any]:
    """``max_abs``, ``mean_abs`` and ``rel_l2``, as in ``Case``; infinite where the shapes differ."""
    if found.shape != expected.shape:
        return {"max_abs": math.inf, "mean_abs": math.inf, "rel_l2": math.inf}
    error = found.astype(np.float64) - expected
    size = float(np.linalg.norm(expected.astype(np.float64)))
    return {
        "max_abs": float(np.abs(error).max()),
        "mean_abs": float(np.abs(error).mean()),
        "rel_l2": float(np.linalg.norm(error)) / (size or 1.0),
    }


def pixel_errors(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> dict[str, Any]:
    """``psnr``, ``pixels_off``, ``within_one_level`` and ``max_levels``, as in ``Case``, of arrays of one shape."""
    error = np.abs(found.astype(np.int16) - expected)
    square = float(np.mean(error.astype(np.float64) ** 2))
    return {
        "psnr": 10 * math.log10(255**2 / square) if square else None,
        "pixels_off": float(np.mean(error > 0)),
        "within_one_level": float(np.mean(error <= 1)),
        "max_levels": int(error.max()),
    }


def _shape_failures(found: NDArray[Any], expected: NDArray[Any]) -> list[str]:
    return [] if found.shape == expected.shape else [f"shape is {found.shape}, expected {expected.shape}"]


def _present(cases: Sequence[Case], name: str) -> list[float]:
    return [value for case in cases if (value := getattr(case, name)) is not None]
