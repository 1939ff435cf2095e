"""The detectors on photographs with a fault put in and without."""

from __future__ import annotations

from operator import attrgetter

import faults
import numpy as np
import pytest
from photographs import kodak, needs_kodak, quarter, words
from places import ROOT

from vaedeploy.bundle import Bundle
from vaedeploy.images.opacity import with_opacity
from vaedeploy.images.photos import load_photos
from vaedeploy.images.pixels import to_levels
from vaedeploy.quality import LIMITS, QualityLimit, find_faults, measure_quality
from vaedeploy.runtime import VAE
from vaedeploy.source import load_reference
from vaedeploy.verify.reference import compute_golden
from vaedeploy.verify.shapes import Shape

TILE = faults.TILE

Picture = faults.Picture


def test_every_limit_has_a_metric_and_a_reason(photo: Picture) -> None:
    clean = measure_quality(with_opacity(photo), with_opacity(photo), tile=TILE)
    for limit in LIMITS:
        assert limit.reason
        assert limit.severity(limit.neutral) == 0
        assert limit.severity(float(attrgetter(limit.metric)(clean))) <= 1
        if limit.bound:
            assert limit.severity(limit.bound) == pytest.approx(1)
            beyond = limit.bound + (1e-3 if limit.upper else -1e-3)
            assert limit.severity(beyond) > 1


def test_the_documentation_states_every_limit() -> None:
    text = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    for limit in LIMITS:
        side = "at most" if limit.upper else "at least"
        name = limit.name.replace("{tint}", "*colour*")
        bound = f"{side} {limit.bound:g} {limit.unit}".strip()
        assert f"| {name} | `{limit.metric}` | {bound} | {limit.reason} |" in text


def test_a_finding_says_its_number_and_its_limit(photo: Picture) -> None:
    (finding, *_) = find_faults(measure_quality(photo, faults.GREEN(photo, 10)))
    assert (finding.name, finding.metric, finding.limit, finding.unit) == ("green cast", "color.cast", 2.3, "a*b*")
    assert finding.words == (
        f"There is a green cast: grey has moved by {finding.value:.1f} towards green (2.3 is just seen)."
    )
    assert finding.severity == pytest.approx(finding.value / 2.3)


def test_limits_may_be_ones_own(photo: Picture) -> None:
    quality = measure_quality(photo, faults.blur(photo, 0.3))
    strict = QualityLimit("blurred", "detail.sharpness", 0.999, False, 1, "", "{value:.3f}", "a test")
    assert find_faults(quality) == ()
    assert [finding.limit for finding in find_faults(quality, [strict])] == [0.999]


COLORS = {"red": (1, 0, 0), "yellow": (1, 1, -1), "green": (-1, 1, -1), "cyan": (-1, 1, 1), "blue": (0, 0, 1)}


@pytest.mark.parametrize("color", COLORS)
def test_a_cast_is_told_by_its_colour(photo: Picture, color: str) -> None:
    assert words(measure_quality(photo, faults.cast(photo, 8, COLORS[color])))[0] == f"{color} cast"


def test_a_grey_picture_is_judged_by_its_contrast(photo: Picture) -> None:
    grey = np.repeat(64 + photo[..., :1] // 2, 3, axis=2).astype(np.uint8)
    assert words(measure_quality(grey, faults.harden(grey, 0.1))) == ["over-saturated"]
    assert words(measure_quality(grey, faults.wash_out(grey, 0.1))) == ["washed out"]


def test_swapped_channels_are_a_shifted_hue(photo: Picture) -> None:
    assert "shifted hue" in words(measure_quality(photo, photo[..., ::-1]))


@pytest.mark.parametrize("detector", faults.DETECTORS, ids=lambda detector: detector.fault)
def test_a_detector_ranks_fires_and_names(detector: faults.Detector, crops: list[Picture]) -> None:
    check_detector(detector, crops[:2] if detector.word == "banding" else crops)


def test_contrast_and_colours_that_both_grow_are_one_fault(crops: list[Picture]) -> None:
    for photo in crops:
        muted = (48 + photo // 2).astype(np.uint8)
        assert words(measure_quality(muted, faults.harden(muted, 0.2))) == ["over-saturated"]


def check_detector(detector: faults.Detector, photos: list[Picture]) -> None:
    assert detector.fires_from in detector.strengths
    (limit, *_) = [limit for limit in LIMITS if limit.metric == detector.metric and fits(limit, detector.word)]
    for number, photo in enumerate(photos):
        severities = []
        for strength in detector.strengths:
            quality = measure_quality(photo, detector.inject(photo, strength), tile=TILE)
            severities.append(limit.severity(float(attrgetter(detector.metric)(quality))))
            if strength >= detector.fires_from:
                assert detector.word in words(quality), (number, strength)
        assert words(quality)[0] == detector.word, (number, words(quality))
        assert severities == sorted(set(severities)), (number, severities)


def fits(limit: QualityLimit, word: str) -> bool:
    return limit.name in (word, "{tint} cast" if word.endswith(" cast") and word != "grey cast" else word)


@pytest.mark.parametrize("name", faults.synthetic_pictures())
def test_gradients_and_periodic_textures_are_clean(name: str) -> None:
    check_clean(faults.synthetic_pictures()[name])


@pytest.mark.slow
def test_photographs_are_clean() -> None:
    for photo in load_photos():
        check_clean(photo)


@needs_kodak
@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 17))
def test_kodak_photographs_are_clean(number: int) -> None:
    check_clean(*kodak(number))


def check_clean(picture: Picture) -> None:
    assert words(measure_quality(picture, picture, tile=TILE)) == []
    assert words(measure_quality(picture, faults.rounding_noise(picture), tile=TILE)) == []


@needs_kodak
@pytest.mark.slow
@pytest.mark.parametrize("detector", faults.DETECTORS, ids=lambda detector: detector.fault)
def test_detectors_on_kodak_photographs(detector: faults.Detector, pytestconfig: pytest.Config) -> None:
    """The middles of two, each a quarter of its photograph. ``--full`` takes four; of banding, for which smooth areas
    are wanted, three.
    """
    numbers = (3, 4, 15) if detector.word == "banding" else (12, 4, 3, 15)
    bounded = numbers if pytestconfig.getoption("--full") else numbers[:2]
    check_detector(detector, [quarter(photo) for photo in kodak(*bounded)])


@needs_kodak
@pytest.mark.slow
def test_a_graph_beside_pytorch_is_clean_and_its_faults_are_told(demo_bundle: Bundle) -> None:
    """On a photograph that the demo VAE never saw; latents of a wrong scale are what a wrong contract gives."""
    (photo,) = (picture[:384, :512] for picture in kodak(15))
    (case,) = compute_golden(load_reference("demo"), [photo], [Shape("photo", 1, 384, 512, False)])
    (expected,) = to_levels(case.image)
    latent = next(iter(case.latents.values()))
    with VAE(demo_bundle.path) as vae:
        assert words(measure_quality(expected, vae.decode(latent, output="float")[0])) == []
        assert words(measure_quality(expected, vae.decode(latent * np.float32(0.6))[0]))[0] == "washed out"
        assert words(measure_quality(expected, vae.decode(latent * np.float32(1.6))[0]))[0] == "over-saturated"
        assert words(measure_quality(expected, vae.decode(-latent)[0]))[0] == "shifted hue"
