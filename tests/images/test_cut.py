"""What part of a picture is looked at, in words."""

from __future__ import annotations

from vaedeploy.images.cut import MOST_TOLD, Cut, cuts_line

PHONE = Cut("phone", 1024, 1024, 3024, 4032)


def test_one_cut_is_told_with_both_sizes_and_its_share() -> None:
    assert cuts_line([PHONE], 3) == (
        "Only the middle of phone is looked at (height x width): 1024x1024 of 3024x4032 pixels, 8.6%."
    )


def test_a_part_is_never_told_as_all() -> None:
    assert Cut("wide", 1024, 4000, 1024, 4001).words == "1024x4000 of 1024x4001 pixels, 99.9%"


def test_the_smallest_part_comes_first_and_many_are_told_by_their_range() -> None:
    others = [Cut(f"no{n}", 96, 128, 98, 131) for n in range(MOST_TOLD)]
    assert cuts_line([others[0], PHONE], 7) == (
        "Only the middle of 2 of 7 pictures is looked at (height x width): "
        "phone, 1024x1024 of 3024x4032 pixels, 8.6%; no0, 96x128 of 98x131 pixels, 95.7%."
    )
    assert cuts_line([*others, PHONE], 7) == (
        "Only the middle of 5 of 7 pictures is looked at: 8.6% to 95.7% of the pixels of each."
    )
