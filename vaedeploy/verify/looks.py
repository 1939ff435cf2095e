"""Looking at what a graph decodes, beside PyTorch's own picture: findings for the report, and pictures for the page."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle.manifest import Manifest
from vaedeploy.images.pixels import to_levels
from vaedeploy.quality import find_faults, measure_quality
from vaedeploy.quality.pictures import Candidate, Picture, Pixels
from vaedeploy.verify.cases import Golden, Look, look_away


def find_look(manifest: Manifest) -> Look:
    """A look at decoded pictures, where scikit-image is there for it: a bundle can be verified without."""
    try:
        from vaedeploy.verify.looks import Looks
    except ImportError:
        return look_away
    return Looks(manifest.latent.factor)


SMALLEST = 256
"""Pixels of a side from which a picture is looked at: smaller crops have too little in them to tell a fault from the
picture's own make.
"""


class Looks:
    """A ``verify.Look`` that keeps what it saw. factor: the VAE's, in pixels."""

    def __init__(self, factor: int) -> None:
        self._factor = factor
        self._references: dict[str, Pixels] = {}
        self._candidates: dict[str, list[Candidate]] = {}

    def __call__(self, form: str, golden: Golden, image: NDArray[Any]) -> tuple[str, ...] | None:
        """Findings of ``image``, (B, 3, H, W) float, that the graphs of ``form`` made, a sentence each; None for one
        that is too small.
        """
        if min(image.shape[2:]) < SMALLEST:
            return None
        seen: list[str] = []
        references = to_levels(golden.image)
        for item, (reference, found) in enumerate(zip(references, image, strict=True), 1):
            quality = measure_quality(reference, found, factor=self._factor)
            findings = find_faults(quality)
            name = golden.name if len(image) == 1 else f"{golden.name} {item}"
            self._references[name] = reference
            candidates = self._candidates.setdefault(name, [])
            label = f"{form} graph" if form else "graph"
            candidates.append(Candidate(label, to_levels(found[None].astype(np.float32))[0], quality, findings))
            seen += [finding.words for finding in findings]
        return tuple(dict.fromkeys(seen))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All that was looked at: PyTorch's picture and, beside it, what each form made."""
        return tuple(Picture(name, self._references[name], tuple(c)) for name, c in self._candidates.items())
