"""The part of a picture that is looked at, if not all of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vaedeploy.values.words import counted

MOST_TOLD = 4
"""The most cuts that ``cuts_line`` lists one by one."""


class Cut(msgspec.Struct, frozen=True):
    """The middle of a picture, the only part that is looked at.

    picture: its name. height, width: of the middle, in pixels. full_height, full_width: of the whole picture.
    """

    picture: str
    height: int
    width: int
    full_height: int
    full_width: int

    @property
    def share(self) -> float:
        """The share of the picture's pixels that is looked at, 0 to 1."""
        return self.height * self.width / (self.full_height * self.full_width)

    @property
    def words(self) -> str:
        """``1024x1024 of 3024x4032 pixels, 8.6%``: both as height x width."""
        return f"{self.height}x{self.width} of {self.full_height}x{self.full_width} pixels, {_percent(self.share)}"


def cuts_line(cuts: Sequence[Cut], total: int) -> str:
    """Which part of the pictures is looked at, in a sentence, smallest part first. cuts: one or more of ``total``."""
    told = sorted(cuts, key=lambda cut: cut.share)
    if len(told) == 1:
        return f"Only the middle of {told[0].picture} is looked at (height x width): {told[0].words}."
    only = f"Only the middle of {len(told)} of {counted(total, 'picture')} is looked at"
    if len(told) > MOST_TOLD:
        return f"{only}: {_percent(told[0].share)} to {_percent(told[-1].share)} of the pixels of each."
    return f"{only} (height x width): {'; '.join(f'{cut.picture}, {cut.words}' for cut in told)}."


def _percent(share: float) -> str:
    # A part is never shown as 100%.
    return f"{min(100 * share, 99.9):.1f}%"
