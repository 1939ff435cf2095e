"""Verdicts from metrics: each limit is seen to hold and to be missed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vaedeploy.bundle.golden import GoldenCase
from vaedeploy.images.pixels import to_levels
from vaedeploy.verify.cases import verify_cases
from vaedeploy.verify.limits import LIMITS, Limit
from vaedeploy.verify.report import Case, Report
from vaedeploy.verify.words import amount

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def golden() -> GoldenCase:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    latents = {name: rng.normal(0, 1, (2, 4, 8, 12)).astype(np.float32) for name in ("latent_mean", "latent_std")}
    image = rng.uniform(-1.2, 1.2, (2, 3, 64, 96)).astype(np.float32)
    return GoldenCase("odd", photo, latents, image, round_trip=True)


def decoded(image: np.ndarray, **others: Any) -> Arrays:
    return {"image": image, "image_u8": to_levels(image), "finite": np.isfinite(image).all(axis=(1, 2, 3))} | others


def judge(
    golden: GoldenCase,
    encode: Callable[[Any], Arrays] | None = None,
    decode: Callable[[Any], Arrays] | None = None,
    precision: Any = "fp32",
) -> dict[tuple[str, str], Case]:
    cases = verify_cases(
        [golden],
        encode or (lambda photo: dict(golden.latents)),
        decode or (lambda latent: decoded(golden.image)),
        precision=precision,
    )
    return {(case.part, case.output): case for case in cases}


def test_the_reference_itself_passes(golden: GoldenCase) -> None:
    cases = judge(golden)
    assert list(cases) == [
        ("encoder", "latent_mean"),
        ("encoder", "latent_std"),
        ("decoder", "image"),
        ("round trip", "image"),
    ]
    for case in cases.values():
        assert case.passed
        assert (case.max_abs, case.mean_abs, case.rel_l2) == (0, 0, 0)
        assert (case.batch, case.height, case.width) == (2, 64, 96)
    image = cases["decoder", "image"]
    assert (image.psnr, image.pixels_off, image.within_one_level, image.max_levels) == (None, 0, 1, 0)
    assert cases["encoder", "latent_mean"].max_levels is None


def test_metrics_are_what_they_say(golden: GoldenCase) -> None:
    wrong = golden.image.copy()
    wrong[0, 0, 0, 0] = 0.0
    expected = golden.image.copy()
    expected[0, 0, 0, 0] = 8 / 127.5  # eight levels away
    golden = GoldenCase(golden.name, golden.photo, golden.latents, expected, golden.round_trip)
    case = judge(golden, decode=lambda latent: decoded(wrong))["decoder", "image"]
    assert case.max_levels == 8
    assert case.pixels_off == 1 / wrong.size
    assert case.within_one_level == 1 - 1 / wrong.size
    assert case.max_abs == pytest.approx(8 / 127.5)
    assert case.mean_abs == pytest.approx(8 / 127.5 / wrong.size)
    assert case.rel_l2 == pytest.approx(8 / 127.5 / np.linalg.norm(expected.astype(float)))
    assert case.psnr == pytest.approx(10 * math.log10(255**2 / (64 / wrong.size)))


@pytest.mark.parametrize("precision", LIMITS)
def test_relative_error_just_over_the_limit_fails(golden: GoldenCase, precision: str) -> None:
    (limit,) = [limit for limit in LIMITS[precision] if limit.metric == "rel_l2"]
    for factor, passes in ((0.9, True), (1.1, False)):
        grown = {name: latent * np.float32(1 + factor * limit.bound) for name, latent in golden.latents.items()}
        case = judge(golden, encode=lambda photo, grown=grown: grown, precision=precision)["encoder", "latent_mean"]
        assert case.passed is passes
    assert case.failures == (f"relative error is {case.rel_l2:.3g}; it must be at most {limit.bound:g}",)


def test_one_pixel_two_levels_off_fails_in_fp32_and_not_in_fp16(golden: GoldenCase) -> None:
    found = decoded(golden.image)
    found["image_u8"] = found["image_u8"].copy()
    pixel = found["image_u8"][1, 2, 3]
    pixel[0] = pixel[0] + 2 if pixel[0] < 128 else pixel[0] - 2
    failed = judge(golden, decode=lambda latent: found)["decoder", "image"]
    assert failed.failures == ("largest difference is 2 of 255 levels; it must be at most 1 of 255 levels",)
    assert judge(golden, decode=lambda latent: found, precision="fp16")["decoder", "image"].passed


def test_a_metric_is_told_with_its_unit() -> None:
    assert amount("within_one_level", 0.9985) == "99.85% of values"
    assert (amount("psnr", 41.26), amount("psnr", None), amount("psnr", math.inf)) == (
        "41.3 dB",
        "no difference",
        "no difference",
    )
    assert (amount("psnr", math.nan), amount("mean_abs", math.nan)) == ("not finite", "not finite")
    assert (amount("rel_l2", 2e-5), amount("rel_l2", None)) == ("2e-05", "not finite")


def test_two_pixels_in_a_thousand_fail_in_fp16(golden: GoldenCase) -> None:
    found = decoded(golden.image)
    levels = found["image_u8"].copy()
    some = np.random.default_rng(0).random(levels.shape) < 0.002
    found["image_u8"] = np.where(some, levels ^ 2, levels)
    case = judge(golden, decode=lambda latent: found, precision="fp16")["decoder", "image"]
    assert case.failures[0].startswith("share within one level is 99.8")


def test_a_colour_cast_fails_bf16_by_psnr(golden: GoldenCase) -> None:
    found = decoded(golden.image)
    found["image_u8"] = found["image_u8"] // 2 + 64
    case = judge(golden, decode=lambda latent: found, precision="bf16")["decoder", "image"]
    assert [f.split()[0] for f in case.failures] == ["PSNR"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_fail(golden: GoldenCase, bad: float) -> None:
    image = golden.image.copy()
    image[1, 0, 0, 0] = bad
    case = judge(golden, decode=lambda latent: decoded(image))["decoder", "image"]
    assert not case.passed
    assert any(f.startswith("relative error is") for f in case.failures)


def test_a_guard_that_lies_fails(golden: GoldenCase) -> None:
    found = decoded(golden.image, finite=np.array([True, False]))
    case = judge(golden, decode=lambda latent: found)["decoder", "image"]
    assert case.failures == ("finite says [True, False], the image says [True, True]",)


def test_another_shape_fails(golden: GoldenCase) -> None:
    case = judge(golden, decode=lambda latent: decoded(golden.image[:, :, :-8]))["decoder", "image"]
    assert case.failures[:2] == (
        "shape is (2, 3, 56, 96), expected (2, 3, 64, 96)",
        "image_u8 has shape (2, 56, 96, 3), expected (2, 64, 96, 3)",
    )


def test_round_trip_decodes_what_was_encoded(golden: GoldenCase) -> None:
    """An encoder that is wrong shows in the round trip even where the decoder is right."""
    other = {name: latent + 1 for name, latent in golden.latents.items()}

    def decode(latent: np.ndarray) -> Arrays:
        return decoded(golden.image if np.array_equal(latent, golden.latents["latent_mean"]) else -golden.image)

    cases = judge(golden, encode=lambda photo: other, decode=decode)
    assert cases["decoder", "image"].passed
    assert not cases["round trip", "image"].passed


def test_report_is_the_worst_of_its_cases(golden: GoldenCase) -> None:
    good = tuple(judge(golden).values())
    half = tuple(judge(golden, decode=lambda latent: decoded(golden.image * np.float32(0.5))).values())
    report = Report("fp32", "the reference", "a backend", good + half)
    assert Report("fp32", "", "", good).passed
    assert not report.passed
    assert not Report("fp32", "", "", ()).passed
    assert report.worst["rel_l2"] == pytest.approx(0.5)
    assert report.worst["max_levels"] == max(c.max_levels for c in half if c.max_levels is not None)
    document = json.loads(report.to_json())
    assert document["passed"] is False
    assert [case["passed"] for case in document["cases"]] == [c.passed for c in report.cases]
    assert document["cases"][0]["psnr"] is None


def test_levels_round_and_clamp() -> None:
    values = np.array([-9, -1, -1 + 1 / 255 - 1e-6, 0.0039, 1, 9, np.nan], dtype=np.float32).reshape(1, 1, 1, 7)
    assert to_levels(np.repeat(values, 3, 1))[0, 0, :, 0].tolist() == [0, 0, 0, 128, 255, 255, 0]


def test_every_limit_has_a_reason() -> None:
    assert set(LIMITS) == {"fp32", "fp16", "bf16"}
    for limits in LIMITS.values():
        assert all(isinstance(limit, Limit) and limit.reason for limit in limits)
    assert [(limit.metric, limit.bound) for limit in LIMITS["fp32"]] == [("rel_l2", 2e-5), ("max_levels", 1)]
