"""A scale that is wrong by a factor, which a round trip cannot tell."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

import vaedeploy as vd
from vaedeploy.bundle.golden import GoldenCase
from vaedeploy.source.preset import presets
from vaedeploy.testing.tiny import tiny_reference
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.origin import Origin
from vaedeploy.values.reference import OWN_MODULES
from vaedeploy.verify.spread import spread_remark

RANDOM = Origin(kind="random", location="random:0", sha256=None, preset="sd15")


def cases(spread: float, drawn: float = 0.0) -> list[GoldenCase]:
    """Two cases whose latents have the standard deviation ``spread``; their distributions add ``drawn`` to it."""
    found = []
    for sign in (1, -1):
        mean = np.full((1, 4, 8, 8), sign * spread, np.float32)  # each alone has a deviation of 0
        latents = {"latent_mean": mean, "latent_std": np.full_like(mean, drawn)}
        found.append(GoldenCase("a", np.zeros((1, 64, 64, 3), np.uint8), latents, np.zeros((1, 3, 64, 64)), False))
    return found


@pytest.mark.parametrize(
    ("scale", "spread", "told"),
    [
        (70.0, 97.0, "standard deviation of 97 after scaling, and .* about 1: the scale is 70, and 0.722 would give 1"),
        (
            0.018,
            0.1,
            "standard deviation of 0.1 after scaling, and .* about 1: the scale is 0.018, and 0.18 would give",
        ),
        ((1.0, 2.0, 3.0, 4.0), 5.0, "1 would need each number of the scale times 0.2"),
    ],
)
def test_a_scale_that_is_wrong_by_a_factor(scale: float | tuple[float, ...], spread: float, told: str) -> None:
    remark = spread_remark(cases(spread), LatentSpec(4, 8, scale), OWN_MODULES)
    assert remark is not None
    assert re.search(told, remark)


@pytest.mark.parametrize("spread", [0.41, 1.0, 1.55, 2.4, 0.0])
def test_what_vaes_have_is_not_told(spread: float) -> None:
    assert spread_remark(cases(spread), LatentSpec(4, 8, 1.0), OWN_MODULES) is None


def test_what_is_drawn_counts() -> None:
    """A distribution may be nearly all noise around 0."""
    assert spread_remark(cases(0.1), LatentSpec(4, 8, 1.0), OWN_MODULES) is not None
    assert spread_remark(cases(0.1, drawn=1.0), LatentSpec(4, 8, 1.0), OWN_MODULES) is None


def test_nobody_chose_the_scale_of_a_preset_or_of_random_weights() -> None:
    sd = next(preset for preset in presets().values() if preset.repository is not None and preset.latent is not None)
    own = Origin(kind="hub", location=str(sd.repository), sha256=None, preset=sd.name)
    finetune = msgspec.structs.replace(own, location="someone/finetune")
    remarks = [spread_remark(cases(9.0), LatentSpec(4, 8, 1.0), origin) for origin in (RANDOM, own, finetune)]
    assert [remark is None for remark in remarks] == [True, True, False]


def test_export_warns_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, verified_smaller: Callable[..., object]
) -> None:
    wrong = tiny_reference(scale=70.0)
    bundle = vd.export_vae(wrong, out=tmp_path / "wrong")
    assert bundle.verified
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    found, factor = (float(told.partition(before)[2].split()[0]) for before in ("deviation of ", "scale is 70, and "))
    caplog.clear()
    right = vd.Reference(wrong.encoder, wrong.decoder, LatentSpec(4, 4, factor, 0.5))
    assert vd.export_vae(right, out=tmp_path / "right").verified
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert found == pytest.approx(70 / factor, rel=0.01)
