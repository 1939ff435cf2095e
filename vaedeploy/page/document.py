"""What a page shows, as data: words first, then tables, then pictures."""

from __future__ import annotations

from typing import Literal

import msgspec

from vaedeploy.quality.candidates import Picture, Pixels

Tone = Literal["good", "mixed", "bad"]


class Column(msgspec.Struct, frozen=True):
    """title: in words. unit: what its numbers are in; empty for words. meaning: how to read them."""

    title: str
    unit: str = ""
    meaning: str = ""


class Cell(msgspec.Struct, frozen=True):
    """text: what is shown. value: what it is sorted by; None sorts by the text."""

    text: str
    value: float | None = None


class Table(msgspec.Struct, frozen=True):
    """Rows that a reader can sort by any column. lead: a sentence on how to read it."""

    title: str
    lead: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


class Strip(msgspec.Struct, frozen=True, eq=False):
    """Small pictures in a row, each (caption, (H, W, 3) uint8), under a title and a sentence."""

    title: str
    words: str
    pictures: tuple[tuple[str, Pixels], ...]


class Document(msgspec.Struct, frozen=True, eq=False):
    """A page.

    verdict: one sentence; tone: whether that is good news. sentences: what else is to be said before any number.
    reference: what the candidates are compared with, such as "photograph".
    """

    title: str
    verdict: str
    tone: Tone
    sentences: tuple[str, ...]
    reference: str
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...] = ()
    strips: tuple[Strip, ...] = ()
