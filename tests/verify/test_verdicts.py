"""What a verification comes to, in a sentence for each half and form."""

from __future__ import annotations

import math

import msgspec
import pytest

from vaedeploy.cli.tables.verify import case_table, closing_lines, verdict_rows
from vaedeploy.verify.report import Case, Report
from vaedeploy.verify.traces import Bisection, Step, Trace
from vaedeploy.verify.verdicts import find_verdicts

EMULATED = "onnxruntime, emulated fp16"

GOOD = Case("decoder", "odd", "image", "portable", 3, 72, 88, 1e-6, 1e-7, 2e-7, 90.0, 0.001, 1.0, 1)

STEP = Step("t", "n", "Conv", "decoder.up.3", 1e-4, math.nan, 1e6, -4.0, 0.5)


def report(*cases: Case) -> Report:
    return Report("fp16", "PyTorch in float64", "onnxruntime-cpu", cases)


def failed(rel_l2: float, **changes: object) -> Case:
    words = f"relative error is {rel_l2:.3g}; it must be at most 0.005"
    return msgspec.structs.replace(GOOD, form=EMULATED, rel_l2=rel_l2, failures=(words,), **changes)


def told(*cases: Case, bisection: Bisection | None = None) -> list[str]:
    return [verdict.sentence for verdict in find_verdicts(msgspec.structs.replace(report(*cases), bisection=bisection))]


def test_what_passed_is_told_with_its_worst_figures() -> None:
    worse = msgspec.structs.replace(GOOD, rel_l2=3e-7, max_levels=0)
    latent = msgspec.structs.replace(GOOD, part="encoder", output="latent_mean", max_levels=None, psnr=None)
    assert told(latent, GOOD, worse) == [
        "encoder, portable: 1 case; at worst: relative error 2e-07",
        "decoder, portable: 2 cases; at worst: relative error 3e-07, largest difference 1 of 255 levels",
    ]


@pytest.mark.parametrize(
    ("cases", "cause"),
    [
        ([failed(math.nan)] * 2, "NaN in 2 of 2 cases"),
        ([failed(math.inf), failed(0.1)], "infinity in 1 of 2 cases"),
        ([failed(math.inf), failed(math.nan)], "NaN in 2 of 2 cases"),
        (
            [failed(0.1), failed(0.2, height=64), msgspec.structs.replace(GOOD, form=EMULATED)],
            "relative error is 0.2; it must be at most 0.005 (image, 3x64x88, the worst of 2 of 3 cases)",
        ),
    ],
)
def test_the_cause_comes_first(cases: list[Case], cause: str) -> None:
    assert told(GOOD, *cases)[1] == f"decoder, {EMULATED}: {cause}"


def test_a_bisection_says_where() -> None:
    trace = Trace("decoder", "onnxruntime", "fp16", "odd", 3, 72, 88, 9, False, (STEP,), STEP)
    others = [msgspec.structs.replace(trace, part="encoder"), msgspec.structs.replace(trace, form="openvino")]
    for traces, place in (((*others, trace), ", first at decoder.up.3"), (others, "")):
        (sentence,) = told(failed(math.nan), bisection=Bisection(tuple(traces)))
        assert sentence == f"decoder, {EMULATED}: NaN in 1 of 1 case{place}"
    nameless = msgspec.structs.replace(trace, jumps=(msgspec.structs.replace(STEP, module=""),))
    assert told(failed(math.nan), bisection=Bisection((nameless,)))[0].endswith(", first at t")
    assert told(msgspec.structs.replace(GOOD, form="onnxruntime"), bisection=Bisection((trace,)))[0].endswith("levels")


def test_rows() -> None:
    latent = msgspec.structs.replace(GOOD, part="encoder", output="latent_mean", max_levels=None, psnr=None)
    latent = msgspec.structs.replace(latent, pixels_off=None)
    verdicts = find_verdicts(report(latent, failed(math.nan)))
    assert [state for state, _ in verdict_rows(verdicts)] == ["passed", "FAILED"]
    heads, rows = case_table(verdicts[0].cases)
    assert heads == ("output", "size", "relative error, L2", "largest error, output's units", "verdict")
    assert rows == [("latent_mean", "3x72x88", "2.0e-07", "1.0e-06", "passed")]
    assert len(case_table(verdicts[1].cases)[0]) == 8


def test_what_can_be_seen_is_told_once_for_each_form() -> None:
    seen = failed(0.1, findings=("It is washed out.",))
    lines = closing_lines(report(GOOD, seen, seen, msgspec.structs.replace(seen, form="x")))
    assert [line for line in lines if line.startswith("visible")] == [
        f"visible in decoder, {EMULATED}: It is washed out. (2 cases)",
        "visible in decoder, x: It is washed out.",
    ]
    assert lines[-1] == "FAILED: 3 of 4 cases on onnxruntime-cpu against PyTorch in float64"
