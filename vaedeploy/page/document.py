"""The content of a page, as data."""

from __future__ import annotations

from typing import Literal

import msgspec

from vaedeploy.quality.candidates import Picture, Pixels

Tone = Literal["good", "mixed", "bad"]


class Column(msgspec.Struct, frozen=True):
    """A column of a table. unit: that of its numbers; empty for a column of words. meaning: how to read the numbers."""

    title: str
    unit: str = ""
    meaning: str = ""


class Cell(msgspec.Struct, frozen=True):
    """A cell of a table. text: what is shown. value: the number by which rows are sorted; None sorts by ``text``."""

    text: str
    value: float | None = None


MOST_UPRIGHT = 4
"""How many rows of a table fit as columns on a phone."""


class Table(msgspec.Struct, frozen=True):
    """Rows that a reader can sort by any column. lead: a sentence on how to read it.

    upright: whether each row is shown as a column, under its first cell, for a table of few rows and many numbers. Such
    a table cannot be sorted; if it belongs to the answer, it is beside the first picture where there is room.
    """

    title: str
    lead: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    upright: bool = False


class Strip(msgspec.Struct, frozen=True, eq=False):
    """Small images in a row, each (caption, (H, W, 3) or (H, W, 4) uint8), under a title and a sentence."""

    title: str
    words: str
    pictures: tuple[tuple[str, Pixels], ...]


class Document(msgspec.Struct, frozen=True, eq=False):
    """The content of one page: the verdict, the first picture, the answer in words and tables, a closer look at that
    picture, further tables, strips, and the other pictures.

    verdict: one sentence. tone: whether the verdict is good news. sentences: what else a reader must know before the
    first picture, at most a few. further: the answer in words, beside the picture where there is room. answer: its
    tables; a page with no tables here or in ``tables`` shows the table of its pictures. notes: the small print at the
    end of the page.
    reference: name of what the candidates are compared with, such as "photograph". opens: the names of the images left
    and right of the line at first; None, or a picture without one of them, opens with the reference and the first
    candidate.
    """

    title: str
    verdict: str
    tone: Tone
    sentences: tuple[str, ...]
    reference: str
    pictures: tuple[Picture, ...]
    answer: tuple[Table, ...] = ()
    tables: tuple[Table, ...] = ()
    strips: tuple[Strip, ...] = ()
    further: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    opens: tuple[str, str] | None = None
