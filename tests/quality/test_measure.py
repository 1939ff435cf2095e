"""The metrics by what they say of known changes."""

from __future__ import annotations

import itertools
import math

import faults
import msgspec
import numpy as np
import pytest
from photographs import words
from skimage.color import lab2rgb, rgb2lab

from vaedeploy.errors import ImageError, InputError
from vaedeploy.images.opacity import on_white, verification_mask, with_opacity
from vaedeploy.quality import Opacity, find_faults, measure_batch, measure_quality

TILE = faults.TILE

Picture = faults.Picture


def test_a_picture_beside_itself_differs_in_nothing(photo: Picture) -> None:
    quality = measure_quality(photo, photo, tile=TILE)
    error, color, contrast = quality.error, quality.color, quality.contrast
    assert (error.psnr, error.ssim, error.off_by_more_than_1, error.off_by_more_than_2) == (None, 1, 0, 0)
    assert error.ms_ssim == pytest.approx(1)
    assert (color.ciede2000_max, color.bias_l, color.bias_a, color.bias_b) == (0, 0, 0, 0)
    assert (color.white_shift, color.black_shift, color.cast) == (0, 0, 0)
    assert (color.chroma_ratio, color.hue_shift) == pytest.approx((1, 0))
    assert (contrast.global_ratio, contrast.local_ratio, contrast.mid_shift) == (1, 1, 0)
    assert all(given == found for given, found in contrast.tone_curve)
    assert quality.detail.octaves == (1,) * 6
    assert quality.detail.gains == pytest.approx((1,) * 6, abs=1e-7)
    assert msgspec.structs.astuple(quality.artifacts) == (0, 0, 0, 0, 0, False)
    assert (quality.tone.worst, quality.tone.spread) == (0, 0)


def test_error_is_what_it_says() -> None:
    reference = np.full((64, 96, 3), 100, np.uint8)
    candidate = reference.copy()
    candidate[0, 0] += np.array([2, 0, 0], np.uint8)
    candidate[0, 1] += np.array([0, 3, 3], np.uint8)
    error = measure_quality(reference, candidate).error
    assert error.off_by_more_than_1 == 2 / (64 * 96)
    assert error.off_by_more_than_2 == 1 / (64 * 96)
    assert error.psnr == pytest.approx(10 * math.log10(255**2 * 64 * 96 * 3 / (4 + 9 + 9)))
    assert error.ms_ssim is None


@pytest.mark.parametrize(("height", "measured"), [(175, False), (176, True)])
def test_five_scales_need_176_pixels(photo: Picture, height: int, measured: bool) -> None:
    quality = measure_quality(photo[:height], faults.blur(photo[:height], 1))
    assert (quality.error.ms_ssim is not None) is measured


def test_ms_ssim_is_that_of_its_formula(photo: Picture) -> None:
    """Contrast and structure written out again from moments, for the scales that the library's function is used for."""
    from scipy.ndimage import gaussian_filter
    from skimage.color import rgb2gray
    from skimage.transform import downscale_local_mean

    blurred = faults.blur(photo, 1)
    x, y = (rgb2gray(p.astype(np.float64)) for p in (photo, blurred))
    product = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if scale:
            x, y = (downscale_local_mean(a, (2, 2)) for a in (x, y))
        means = [gaussian_filter(a, 1.5, truncate=3.5) for a in (x, y, x * x, y * y, x * y)]
        variances, shared = means[2] - means[0] ** 2 + means[3] - means[1] ** 2, means[4] - means[0] * means[1]
        term = (2 * shared + 7.65**2) / (variances + 7.65**2)
        if scale == 4:
            term *= (2 * means[0] * means[1] + 2.55**2) / (means[0] ** 2 + means[1] ** 2 + 2.55**2)
        product *= float(term[5:-5, 5:-5].mean()) ** weight
    assert measure_quality(photo, blurred).error.ms_ssim == pytest.approx(product, abs=1e-4)


def to_bytes(lab: np.ndarray) -> Picture:
    """With noise of half a level, so that rounding does not move flat areas to one side."""
    return np.rint(lab2rgb(lab) * 255 + np.random.default_rng(0).uniform(-0.5, 0.5, lab.shape)).astype(np.uint8)


@pytest.mark.parametrize(
    ("turn", "ratio", "shift"),
    [(0, 0.8, (0, 0)), (12, 1, (0, 0)), (-7, 1.1, (0, 0)), (0, 1, (3, -2)), (5, 0.9, (-2, 4))],
)
def test_color_finds_what_was_done_to_the_colours(photo: Picture, turn: float, ratio: float, shift: tuple) -> None:
    """A line in a*b* is put on muted colours, so that none leaves sRGB, and is found again."""
    muted = (64 + photo // 2).astype(np.uint8)
    lab = rgb2lab(muted)
    chroma = (lab[..., 1] + 1j * lab[..., 2]) * ratio * np.exp(1j * np.radians(turn)) + complex(*shift)
    lab[..., 1], lab[..., 2] = chroma.real, chroma.imag
    color = measure_quality(muted, to_bytes(lab)).color
    assert color.chroma_ratio == pytest.approx(ratio, abs=0.01)
    assert color.hue_shift == pytest.approx(turn, abs=0.3)
    assert (color.grey_a, color.grey_b) == pytest.approx(shift, abs=0.1)
    assert color.bias_l == pytest.approx(0, abs=0.1)


def test_a_grey_picture_has_no_colours_to_lose(photo: Picture) -> None:
    grey = np.repeat(photo[..., :1], 3, axis=2)
    color = measure_quality(grey, faults.rounding_noise(grey)).color
    assert (color.chroma_ratio, color.hue_shift) == (1, 0)


def test_contrast_is_what_was_done_to_lightness(photo: Picture) -> None:
    lab = rgb2lab(faults.fade(photo, 0.5))
    lab[..., 0] = 50 + 0.7 * (lab[..., 0] - 50)
    reference = to_bytes(lab)
    lab[..., 0] = 50 + 0.8 * (lab[..., 0] - 50) + 3
    quality = measure_quality(reference, to_bytes(lab))
    assert quality.contrast.global_ratio == pytest.approx(0.8, abs=0.01)
    assert quality.contrast.local_ratio == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("levels", [6, -6])
def test_mid_shift_is_of_brightness_and_not_of_contrast(photo: Picture, levels: float) -> None:
    muted = (64 + photo // 2).astype(np.uint8)
    shift = measure_quality(muted, faults.cast(muted, levels)).contrast.mid_shift
    assert shift == pytest.approx(levels / 255 * 100, rel=0.1)  # about mid grey, L* is nearly linear in sRGB levels
    assert abs(measure_quality(muted, faults.wash_out(muted, 0.3)).contrast.mid_shift) < 0.5


def test_the_tone_curve_is_the_tones(photo: Picture) -> None:
    curve = measure_quality(photo, (photo // 2).astype(np.uint8)).contrast.tone_curve
    assert 30 <= len(curve) <= 33
    assert all(found == pytest.approx(level / 2, abs=1) for level, found in curve)


def test_octaves_are_where_the_frequencies_are() -> None:
    """A sine of each period in turn is halved: its own octave has a quarter of the energy, the others keep theirs."""
    columns = np.arange(256) + np.zeros((256, 1))
    periods = (3, 6, 12, 24, 48)
    waves = [20 * np.sin(2 * np.pi * columns / period + period) for period in periods]
    reference = np.rint(128 + sum(waves)).astype(np.uint8)
    for octave, wave in enumerate(waves):
        candidate = np.rint(128 + sum(waves) - wave / 2).astype(np.uint8)
        detail = measure_quality(reference[..., None].repeat(3, 2), candidate[..., None].repeat(3, 2)).detail
        expected = [0.5 if n == octave else 1 for n in range(len(periods))]
        assert detail.gains[: len(periods)] == pytest.approx(expected, abs=0.02)


def test_blur_takes_what_its_transfer_function_takes(photo: Picture) -> None:
    """Gaussian of sigma: amplitude exp(-2 (pi sigma f)^2), so between the values at the ends of each octave."""
    gains = measure_quality(photo, faults.blur(photo, 0.8)).detail.gains
    ends = [math.exp(-2 * (math.pi * 0.8 * 0.5**n) ** 2) for n in range(1, 6)]
    for gain, (low, high) in zip(gains[1:], itertools.pairwise(ends[1:]), strict=False):
        assert low - 0.01 <= gain <= high + 0.01


def test_a_pattern_of_the_factor_is_a_grid_and_another_is_not(photo: Picture) -> None:
    columns = np.arange(photo.shape[1])[:, None]
    muted = 32 + photo // 2
    for period in (2, 4, 8, 7, 11):
        wave = np.rint(3 * np.cos(2 * np.pi * columns / period)).astype(np.int8)
        grid = measure_quality(muted, (muted + wave).astype(np.uint8)).artifacts.grid
        if 8 % period == 0:
            assert grid == pytest.approx(wave[:8].std(), abs=0.1), period
        else:
            assert grid < 0.2 * wave.std(), period


def test_a_seam_is_as_high_as_its_step(photo: Picture) -> None:
    candidate = photo // 2 + 64
    reference = candidate.copy()
    candidate[:, 128:256] += 5
    candidate[128:] += 3
    seams = measure_quality(reference, candidate, tile=128).artifacts.seams
    assert seams == pytest.approx((5 + 5 + 3) / 3, abs=0.5)
    assert measure_quality(reference, candidate).artifacts.seams is None
    assert measure_quality(reference, candidate, tile=96).artifacts.seams == pytest.approx(0, abs=0.1)
    assert measure_quality(reference, candidate, tile=512).artifacts.seams == 0


def test_banding_is_the_share_of_levels_that_are_gone() -> None:
    ramp = (100 + np.arange(256) / 4 + np.zeros((256, 1))).astype(np.uint8)[..., None].repeat(3, 2)
    for step, lost in ((2, 1 / 2), (4, 3 / 4)):
        banding = measure_quality(ramp, ramp // step * step).artifacts.banding
        assert banding == pytest.approx(lost, abs=0.2)
    assert (
        measure_quality(ramp, (ramp // 2 + 50).astype(np.uint8)).artifacts.banding < 0.05
    )  # flatter, with every level


def test_fried_pixels_are_counted() -> None:
    flat = np.full((200, 250, 3), 90, np.uint8)
    candidate = flat.copy()
    candidate[50, 60] = 255  # a pixel
    candidate[100:103, 120:123] = (255, 0, 90)  # a speck three pixels wide, which counts by its middle
    candidate[150, 60:] = 255  # a line is none
    assert measure_quality(flat, candidate).artifacts.fried == 2 / (200 * 250) * 1e6
    assert measure_quality(candidate, candidate).artifacts.fried == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_told_alone(photo: Picture, value: float) -> None:
    for share in (1e-4, 0.01, 1):
        quality = measure_quality(photo, faults.add_nan(photo, share, value))
        assert quality.artifacts.nonfinite == pytest.approx(share, rel=0.3)
        assert words(quality) == ["broken (NaN)"]


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_constant_picture_is_told_alone(photo: Picture, level: int) -> None:
    flat = faults.flatten(photo, level)
    assert words(measure_quality(photo, flat)) == ["broken (constant)"]
    assert words(measure_quality(flat, flat)) == []


def test_a_float_picture_is_measured_as_its_bytes(photo: Picture) -> None:
    candidate = faults.blur(photo, 1)
    assert measure_quality(photo, faults.to_float(candidate)) == measure_quality(photo, candidate)
    assert measure_quality(photo, faults.to_float(candidate).astype(np.float64)) == measure_quality(photo, candidate)


def test_a_batch_is_its_items(crops: list[Picture]) -> None:
    references = np.stack(crops)
    candidates = np.stack([faults.blur(references[0], 1), references[1], faults.fry(references[2], 100)])
    found = measure_batch(references, candidates, tile=TILE)
    assert found == tuple(measure_quality(r, c, tile=TILE) for r, c in zip(references, candidates, strict=True))
    assert [words(quality)[:1] for quality in found] == [["blurred"], [], ["fried pixels"]]


GOOD = np.zeros((64, 48, 3), np.uint8)


@pytest.mark.parametrize(
    ("reference", "candidate", "message"),
    [
        (GOOD[..., 0], GOOD, "reference is uint8 of shape (64, 48); it must be (H, W, 3) or (H, W, 4) uint8"),
        (GOOD / 255, GOOD, "reference is float64 of shape (64, 48, 3); it must be (H, W, 3) or (H, W, 4) uint8"),
        (
            GOOD[:31],
            GOOD[:31],
            "the images are 31x48; each side must be at least 32 pixels",
        ),
        (
            GOOD,
            GOOD[:56],
            "candidate is uint8 of shape (56, 48, 3); beside this reference it must be (64, 48, 3) uint8, "
            "or (3, 64, 48) float around [-1, 1]",
        ),
        (
            GOOD,
            GOOD / 255,
            "candidate is float64 of shape (64, 48, 3); beside this reference it must be (64, 48, 3) uint8, "
            "or (3, 64, 48) float around [-1, 1]",
        ),
    ],
)
def test_what_is_no_picture_is_refused(reference: np.ndarray, candidate: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError) as error:
        measure_quality(reference, candidate)
    assert str(error.value) == message


def test_images_with_opacity_are_measured_in_front_of_white(photo: np.ndarray) -> None:
    mask = verification_mask(*photo.shape[:2])
    reference = with_opacity(photo, mask)
    candidate = with_opacity(faults.blur(photo, 1), mask)
    quality = measure_quality(reference, candidate)
    flat = measure_quality(on_white(reference), on_white(candidate))
    assert msgspec.structs.replace(quality, opacity=None) == flat
    assert quality.opacity == Opacity(mean_abs=0.0, max_abs=0, bias=0.0)
    hidden = reference.copy()
    hidden[mask == 0, :3] = 0  # colours that nobody sees
    assert measure_quality(reference, hidden) == measure_quality(reference, reference)
    floats = faults.to_float(candidate)
    assert measure_quality(reference, floats) == quality
    floats[3, 5, 5] = np.nan
    assert measure_quality(reference, floats).artifacts.nonfinite == 1 / floats.size


def test_opacity_is_judged_by_itself(photo: np.ndarray) -> None:
    """White in front of white looks the same at every opacity."""
    white = np.full_like(photo, 255)
    quality = measure_quality(with_opacity(white, 200), with_opacity(white, 190))
    assert quality.opacity == Opacity(mean_abs=10.0, max_abs=10, bias=-10.0)
    (finding,) = find_faults(quality)
    assert finding.name == "wrong opacity"
    assert finding.words == "Opacity is wrong: it is 10 levels of 255 off on average."
    assert find_faults(measure_quality(with_opacity(white, 200), with_opacity(white, 206))) == ()


def test_images_without_opacity_say_nothing_of_it(photo: np.ndarray) -> None:
    quality = measure_quality(photo, photo)
    assert quality.opacity is None
    assert b"opacity" not in msgspec.json.encode(quality)


def test_opacity_of_one_image_alone_is_refused(photo: np.ndarray) -> None:
    for pair in (
        (photo, with_opacity(photo)),
        (with_opacity(photo), photo),
        (with_opacity(photo), faults.to_float(photo)),
    ):
        with pytest.raises(ImageError, match=r"beside this reference it must be \(256, 384, [34]\) uint8"):
            measure_quality(*pair)


def test_batches_of_two_lengths_are_refused() -> None:
    with pytest.raises(ImageError) as error:
        measure_batch(np.stack([GOOD] * 2), np.stack([GOOD] * 3))
    assert str(error.value) == "there are 2 references and 3 candidates; give one for each"


@pytest.mark.parametrize(("what", "smallest"), [("factor", 1), ("tile", 2)])
def test_sizes_that_are_too_small_are_refused(what: str, smallest: int) -> None:
    with pytest.raises(InputError) as error:
        measure_quality(GOOD, GOOD, **{what: smallest - 1})
    assert str(error.value) == f"{what} is {smallest - 1}; it must be a whole number of pixels, {smallest} or more"


def test_a_picture_smaller_than_the_factor_is_refused() -> None:
    with pytest.raises(ImageError) as error:
        measure_quality(GOOD, GOOD, factor=64)
    assert str(error.value) == "the images are 64x48; each side must be at least 64 pixels"


@pytest.mark.parametrize("factor", [1, 2, 4, 16, 32])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 40)])
def test_every_size_and_factor_is_measured(photo: Picture, factor: int, size: tuple[int, int]) -> None:
    picture = photo[: size[0], : size[1]]
    for tile in (2, 16, 64):
        assert find_faults(measure_quality(picture, picture, factor=factor, tile=tile)) == ()
