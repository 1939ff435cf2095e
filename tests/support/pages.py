"""Documents for tests of the page, of pictures made here."""

from __future__ import annotations

import numpy as np
from faults import blur, wash_out

from vaedeploy.page import Cell, Column, Document, Strip, Table
from vaedeploy.quality import Finding, measure_quality
from vaedeploy.quality.candidates import Candidate, Picture

BLURRED = Finding(
    "blurred", "detail.sharpness", 0.5, 0.8, "", "Fine detail is blurred away: 50 % of it is left.", severity=2.5
)


def scene(height: int = 96, width: int = 144, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: coarse random texture in colour, and fine in grey."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 215, (-(-height // 16), -(-width // 16), 3)).repeat(16, 0).repeat(16, 1)
    return np.clip(coarse[:height, :width] + rng.normal(0, 12, (height, width, 1)), 0, 255).astype(np.uint8)


def picture(name: str, reference: np.ndarray, names: tuple[str, ...] = ("first", "second")) -> Picture:
    """The first candidate is blurred, and is said to be; the others are washed out."""
    made = {n: (wash_out(reference, 0.2), ()) if k else (blur(reference, 1.0), (BLURRED,)) for k, n in enumerate(names)}
    return Picture(
        name,
        reference,
        tuple(Candidate(n, pixels, measure_quality(reference, pixels), f) for n, (pixels, f) in made.items()),
    )


def document(*pictures: Picture) -> Document:
    figures = ((Cell("10 ms", 10.0), Cell("beta")), (Cell("9 ms", 9.0), Cell("alpha")))
    return Document(
        title="first and second <on> paper",
        verdict="first is truest & best",
        tone="mixed",
        sentences=("Nothing here was measured.",),
        reference="photograph",
        pictures=pictures or (picture("one", scene()), picture("two", scene(seed=1))),
        tables=(Table("Speed", "Less is better.", (Column("Time", "ms", "Of a call."), Column("Name")), figures),),
        strips=(Strip("first into second", "It fits.", (("photograph", scene(64, 64)),)),),
        further=("Said later.",),
    )
