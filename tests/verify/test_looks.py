"""What a person would see, joined to a verification: which pictures are looked at, and what the page says of it."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import skimage.data
from faults import to_float, wash_out

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.golden import GoldenCase
from vaedeploy.cli.tables.verify import closing_lines
from vaedeploy.images.pixels import to_levels
from vaedeploy.page import write_page
from vaedeploy.verify.advice import advise
from vaedeploy.verify.cases import verify_cases
from vaedeploy.verify.looks import Looks
from vaedeploy.verify.page import verification_document
from vaedeploy.verify.report import Report
from vaedeploy.verify.steps import STEP_COLUMNS
from vaedeploy.verify.traces import Bisection, Step, Trace
from vaedeploy.verify.verdicts import find_verdicts

PHOTO = skimage.data.astronaut()[128:384, 128:416]


def golden(photo: np.ndarray = PHOTO, name: str = "large") -> GoldenCase:
    height, width, _ = photo.shape
    latent = np.zeros((1, 4, height // 8, width // 8), np.float32)
    return GoldenCase(name, photo[None], {"latent": latent}, to_float(photo)[None], round_trip=True, full=((512, 600),))


def verify(made: Callable[[np.ndarray], np.ndarray], case: GoldenCase) -> tuple[Report, Looks]:
    """Of a decoder that gives what ``made`` makes of the case's photograph; in bf16, whose limits are the laxest."""
    looks = Looks(8)

    def decode(latent: np.ndarray) -> dict[str, np.ndarray]:
        image = to_float(made(case.photo[0]))[None]
        return {"image": image, "image_u8": to_levels(image), "finite": np.isfinite(image).all(axis=(1, 2, 3))}

    found = verify_cases([case], lambda photo: case.latents, decode, precision="bf16", form="bf16", looks=looks)
    return Report("bf16", "PyTorch", "none", found), looks


def test_the_decoders_large_pictures_are_looked_at_and_nothing_else() -> None:
    report, looks = verify(lambda photo: photo, golden())
    assert [(case.part, case.findings) for case in report.cases] == [
        ("encoder", None),
        ("decoder", ()),
        ("round trip", None),
    ]
    (picture,) = looks.pictures
    assert (picture.reference == PHOTO).all()
    assert [candidate.name for candidate in picture.candidates] == ["bf16 graph"]
    report, looks = verify(lambda photo: photo, golden(PHOTO[:248]))
    assert [case.findings for case in report.cases] == [None] * 3
    assert looks.pictures == ()


def test_a_fault_is_told_in_words_and_fails_nothing_that_the_limits_allow() -> None:
    report, looks = verify(lambda photo: wash_out(photo, 0.09), golden())
    decoder = report.cases[1]
    assert looks.pictures[0].candidates[0].findings[0].name == "washed out"
    assert decoder.findings
    assert all("relative error" in failure or "PSNR" in failure for failure in decoder.failures)
    assert [line for line in closing_lines(report) if line.startswith("visible in decoder, bf16: ")]
    assert json.loads(report.to_json())["cases"][1]["findings"] == list(decoder.findings)


@pytest.mark.parametrize(
    ("strength", "verdict"),
    [
        (0.0, "Verified: all 3 checks passed"),
        (0.5, "Failed: decoder, bf16: relative error is 0.5; it must be at most 0.03"),
    ],
)
def test_the_page_says_the_verdict_first_and_then_what_is_seen(tmp_path: Path, strength: float, verdict: str) -> None:
    report, looks = verify(lambda photo: wash_out(photo, strength), golden())
    made = verification_document("mine", report, looks.pictures)
    assert made.verdict.startswith(verdict)
    text = write_page(made, tmp_path).read_text()
    assert text.index(verdict) < text.index("<article") < text.index("All cases")
    assert ("No fault is seen" in text) == (strength == 0)
    part = "of larger ones the middle (height x width): 256x288 of 512x600 pixels, 24.0%."
    assert (part in text) == (strength == 0)  # of a failure, the cause alone comes first
    assert ('<span class="finding">washed out</span>' in text) == (strength > 0)


@pytest.mark.parametrize(
    ("full", "told"),
    [
        (((512, 600),), "256x288 of 512x600 pixels, 24.0%"),
        ((PHOTO.shape[:2],), "256x288 pixels"),
        (((200, 600),), "256x288 pixels"),  # it was enlarged
        ((), "256x288 pixels"),  # the bundle kept the case
    ],
)
def test_the_page_tells_what_part_of_a_photograph_is_shown(full: tuple[tuple[int, int], ...], told: str) -> None:
    report, looks = verify(lambda photo: photo, dataclasses.replace(golden(), full=full))
    *_, sizes = verification_document("mine", report, looks.pictures).sentences
    assert sizes.endswith(f"(height x width): {told}.")
    (picture,) = looks.pictures
    assert (picture.cut and picture.cut.words) == (told if "of" in told else None)


def test_a_failed_page_opens_on_the_gravest_failing_form_with_its_cause_and_what_the_bisection_found() -> None:
    good, looks = verify(lambda photo: photo, golden())
    black, _ = verify(lambda photo: np.full(photo.shape, np.nan), golden())
    report = msgspec.structs.replace(
        good, cases=(*good.cases, *(msgspec.structs.replace(case, form="fp16") for case in black.cases))
    )
    looks.see("fp16", "large", to_float(PHOTO)[None], np.full((1, 3, *PHOTO.shape[:2]), np.nan))
    step = Step("conv", "node", "Conv", "decoder.up_blocks.3", 0.0, math.inf, 7e4, -0.1, 1.0)
    trace = Trace("decoder", "fp16", "fp16", "large", 1, 256, 288, 9, False, (step,), step)
    found = Bisection((trace,))
    report = msgspec.structs.replace(report, bisection=Bisection((trace,), advise(found, report)))
    made = verification_document("mine", report, looks.pictures)
    assert made.verdict == "Failed: decoder, fp16: NaN in 1 of 1 case, first at decoder.up_blocks.3"
    assert made.opens == ("PyTorch", "fp16 graph")
    assert made.sentences == ()
    (steps,) = made.answer
    assert steps.title == "Where it goes wrong"
    assert len(steps.columns) == len(steps.rows[0]) == len(STEP_COLUMNS)
    assert [(cell.text, cell.value) for cell in steps.rows[0][3:]] == [
        ("decoder.up_blocks.3", None),
        ("Conv", None),
        ("conv", None),
        ("0.0e+00", 0.0),
        ("inf", math.inf),
        ("7e+04", 7e4),
        ("-0.1", -0.1),
        ("100.00%", 100.0),
    ]
    assert any("conv (Conv of decoder.up_blocks.3) overflows" in sentence for sentence in made.further)


def test_a_failed_page_tells_each_fault_once_and_has_the_cases_that_failed_first() -> None:
    bad, looks = verify(lambda photo: wash_out(photo, 0.5), golden())
    good, _ = verify(lambda photo: photo, golden())
    report = msgspec.structs.replace(bad, cases=(*good.cases, *bad.cases))
    made = verification_document("mine", report, looks.pictures)
    verdicts = [row[-1].text for row in made.tables[0].rows]
    assert verdicts == sorted(verdicts)  # FAILED before passed
    assert {"FAILED", "passed"} == set(verdicts)
    assert len(made.further) == len([v for v in find_verdicts(report) if not v.passed]) - 1  # the other is the headline


def test_a_page_without_pictures_says_so(tmp_path: Path) -> None:
    report, looks = verify(lambda photo: photo, golden(PHOTO[:64, :64]))
    text = write_page(verification_document("mine", report, looks.pictures), tmp_path).read_text()
    assert "No image was large enough to be looked at." in text
    assert "<article" not in text


def test_without_scikit_image_a_bundle_is_verified_and_not_looked_at() -> None:
    script = (
        "import sys; sys.modules['skimage'] = None\n"
        "from vaedeploy.verify import graphs, looks\n"
        "print(looks.make_looks(8))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@pytest.mark.slow
def test_verify_writes_the_page(demo_bundle: Bundle, tmp_path: Path, vaedeploy: Callable[..., Any]) -> None:
    shutil.copytree(demo_bundle.path, tmp_path / "demo")
    ended = vaedeploy("verify", tmp_path / "demo", "--report", tmp_path / "page")
    assert ended.code == 0
    text = (tmp_path / "page" / "index.html").read_text()
    assert "Verified: all" in text
    assert text.count("<article") == 1
    Bundle.open(tmp_path / "demo").check()
