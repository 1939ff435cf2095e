"""Which sizes pictures are brought to, and how."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vaedeploy.errors import InputError
from vaedeploy.images.sizing import Fit, Sizing, bucket_table, fitted
from vaedeploy.values.latent import SizeRule

EIGHT = SizeRule(8)

SIDES = st.integers(1, 4000)


def kohya_table(side: int, step: int) -> list[tuple[int, int]]:
    """(width, height) of kohya's sd-scripts for that resolution, with half and twice the side as limits."""
    low, high, area = side // 2, side * 2, side * side
    square = int(math.sqrt(area) // step) * step
    found = {(square, square)}
    width = low
    while width <= high:
        height = min(high, int((area // width) // step) * step)
        if height >= low:
            found |= {(width, height), (height, width)}
        width += step
    return sorted(found)


@pytest.mark.parametrize(("side", "step"), [(512, 64), (1024, 64), (1024, 8), (768, 32)])
def test_the_table_is_kohyas(side: int, step: int) -> None:
    assert [(width, height) for height, width in bucket_table(side, step)] == kohya_table(side, step)


@given(SIDES, SIDES)
def test_the_choice_is_kohyas(height: int, width: int) -> None:
    table = kohya_table(512, 64)
    chosen = (width, height)
    if chosen not in table:
        ratios = np.array([w / h for w, h in table])
        chosen = table[np.abs(ratios - width / height).argmin()]
    fit = Sizing(EIGHT, buckets=512, step=64).fit("a", (height, width))
    assert fit.size == chosen[::-1]


@given(SIDES, SIDES, st.sampled_from(["center", "corner", "random"]))
def test_a_fit_covers_its_size_and_keeps_the_ratio(height: int, width: int, crop: str) -> None:
    fit = Sizing(EIGHT, buckets=256, crop=crop).fit("a", (height, width))
    for axis in (0, 1):
        assert 0 <= fit.crop[axis] <= fit.resized[axis] - fit.size[axis]
    assert min(fit.resized[0] - fit.size[0], fit.resized[1] - fit.size[1]) == 0
    scale = max(fit.size[0] / height, fit.size[1] / width)
    assert fit.resized == pytest.approx((height * scale, width * scale), abs=0.51)


def test_crops() -> None:
    places = {crop: Sizing(EIGHT, size=(64, 64), crop=crop).fit("a", (64, 128)).crop for crop in ("center", "corner")}
    assert places == {"center": (0, 32), "corner": (0, 0)}
    drawn = {Sizing(EIGHT, size=(64, 64), crop="random", seed=s).fit(k, (64, 1000)).crop for s in (0, 1) for k in "ab"}
    assert len(drawn) == 4
    assert all(top == 0 and 0 <= left <= 936 for top, left in drawn)


def test_without_a_size_pictures_keep_theirs() -> None:
    sizing = Sizing(EIGHT)
    fit = sizing.fit("a", (17, 23))
    assert (fit, sizing.shard_size(fit)) == (Fit((17, 23), (17, 23), (0, 0), (17, 23)), (24, 24))


def test_a_piece_is_what_is_cut_out_of_the_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (97, 301, 3), dtype=np.uint8)
    fit = Sizing(EIGHT, size=(64, 72)).fit("a", (97, 301))
    whole = Image.fromarray(pixels).resize(fit.resized[::-1], Image.Resampling.LANCZOS)
    top, left = fit.crop
    wanted = np.asarray(whole)[top : top + 64, left : left + 72].astype(int)
    # The kernel's weights are rounded once more.
    assert np.abs(fitted(pixels, fit).astype(int) - wanted).max() <= 1


def test_a_picture_of_its_size_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 72, 3), dtype=np.uint8)
    assert fitted(pixels, Sizing(EIGHT, size=(64, 72)).fit("a", (64, 72))) is pixels


def test_a_thin_picture_takes_no_memory() -> None:
    """Resized as a whole it would have 2,560,000 rows."""
    fit = Sizing(EIGHT, size=(512, 512)).fit("a", (5000, 1))
    assert fit.resized == (2_560_000, 512)
    assert fitted(np.full((5000, 1, 3), 7, np.uint8), fit).tolist() == np.full((512, 512, 3), 7).tolist()


def test_transparent_colours_do_not_bleed() -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32] = (200, 100, 50, 255)
    pixels[:, 32:] = (0, 255, 0, 0)
    small = fitted(pixels, Sizing(EIGHT, size=(32, 32)).fit("a", (64, 64)))
    seen = small[small[..., 3] > 8]
    assert np.abs(seen[:, :3].astype(int) - (200, 100, 50)).max() <= 12  # rounded twice: times opacity, and by it


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"buckets": 64, "size": (64, 64)}, "buckets and size are both given"),
        ({"size": (60, 64)}, "size is 60x64, but both must be multiples of 8"),
        ({"size": 64}, r"size is 64; it must be two whole numbers, \(height, width\)"),
        ({"buckets": "64"}, "buckets is '64'; it must be the side of a square in pixels"),
        ({"buckets": (64, 64)}, r"buckets is \(64, 64\); it must be the side of a square in pixels"),
        ({"buckets": 4}, "buckets is 4; it must be the side of a square in pixels, from 8 to 16384"),
        ({"buckets": 64, "step": 12}, "the step of buckets is 12; it must be a multiple of 8"),
        ({"crop": "middle"}, "crop is 'middle'; it must be one of center, corner, random"),
    ],
)
def test_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Sizing(EIGHT, **options)
