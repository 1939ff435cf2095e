"""What a page shows, as data: words first, then tables, then pictures."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy.quality import Finding, Quality

Pixels = NDArray[np.uint8]

Tone = Literal["good", "mixed", "bad"]


class Candidate(msgspec.Struct, frozen=True, eq=False):
    """One picture that is judged beside the reference.

    name: who made it. pixels: (H, W, 3) uint8, of the reference's size. quality, findings: of it against the reference.
    """

    name: str
    pixels: Pixels
    quality: Quality
    findings: tuple[Finding, ...]


class Picture(msgspec.Struct, frozen=True, eq=False):
    """One scene: the reference, (H, W, 3) uint8, and one or several candidates."""

    name: str
    reference: Pixels
    candidates: tuple[Candidate, ...]


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
