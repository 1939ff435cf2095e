"""What a benchmark says of a bundle: every half on every backend, in turns, and the floor below it."""

from __future__ import annotations

import functools
import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Ended
from host_gpu import stand_in
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, InputError, SizeError
from vaedeploy.pipeline import ceilings as measured
from vaedeploy.pipeline.bench import Timing, bench_bundle
from vaedeploy.pipeline.ceilings import Ceilings
from vaedeploy.pipeline.turns import WARM, take_rounds, take_turns
from vaedeploy.runtime import openvino
from vaedeploy.runtime.backends import BACKENDS, ENGINES, problem_of


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bench") / "tiny")


CPU = ["onnxruntime-cpu"]


@pytest.mark.slow
def test_every_half_at_every_size(bundle: Bundle) -> None:
    found = bench_bundle(bundle, backends=CPU, sizes=[(8, 12), (16, 16)], batches=[1, 2], rounds=2)
    rows = {(t.part, t.batch, t.height, t.width) for t in found.timings}
    assert rows == {(part, n, *size) for part in ("encoder", "decoder") for n in (1, 2) for size in ((8, 12), (16, 16))}
    for row in found.timings:
        assert (row.backend, row.precision, row.problem) == ("onnxruntime-cpu", "fp32", None)
        assert row.least_ms is not None
        assert row.most_ms is not None
        assert 0 < row.least_ms <= row.ms <= row.most_ms  # type: ignore[operator]
    (ceilings,) = found.ceilings
    assert ceilings.device == "CPU"
    assert ceilings.product["fp32"] > 1e9
    assert ceilings.copy > 1e8


def test_the_floor(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is one transposed convolution: 2 x 2 x 3 x 4 x 4 operations for each of 2 x 3 latent elements."""
    operations = 2 * 2 * 3 * 16 * 6
    ceilings = Ceilings("CPU", {"fp32": 1000.0}, 1e9)
    monkeypatch.setattr(measured, "_of_cpu", lambda: ceilings)
    (row,) = [t for t in bench_bundle(bundle, backends=CPU, sizes=[(8, 12)], rounds=1).timings if t.part == "decoder"]
    assert row.floor_ms == pytest.approx(operations)  # at 1000 operations a second
    assert row.share == pytest.approx(operations / row.ms)
    # With a slow copy: 4 bytes for each of 96 weights, and 3 bytes a pixel and 4 x 2 / 16 for the latent.
    monkeypatch.setattr(measured, "_of_cpu", lambda: Ceilings("CPU", {"fp32": 1e12}, 100.0))
    (row,) = [t for t in bench_bundle(bundle, backends=CPU, sizes=[(8, 12)], rounds=1).timings if t.part == "decoder"]
    assert row.floor_ms == pytest.approx(10 * (4 * 96 + 96 * 3.5), rel=0.1)


def test_backends_take_turns() -> None:
    order: list[str] = []

    def call(name: str) -> Callable[[], None]:
        def work() -> None:
            order.append(name)
            time.sleep(0.06)

        return work

    found = take_turns({"a": call("a"), "b": call("b")}, 3)
    warm = (WARM + 1) * 2
    assert order[warm:] == ["a", "b", "b", "a", "a", "b"]
    assert all(len(seconds) == 3 and problem is None for seconds, problem in found.values())


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 1), (-1.0, 1), (math.inf, 4)])
def test_no_round_begins_without_time_for_it_but_the_first(budget: float, rounds: int) -> None:
    order: list[str] = []
    calls = {name: functools.partial(order.append, name) for name in ("a", "b", "cold")}
    found = take_rounds(calls, {"a": 1.0, "b": 1.0}, 4, budget)
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": rounds, "b": rounds}
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"][: 2 * rounds]


@pytest.mark.parametrize("error", [BackendError("out of memory"), SizeError("no engine takes it")])
def test_what_cannot_be_timed_says_why_and_stops_no_other(error: Exception) -> None:
    def fail() -> None:
        raise error

    found = take_turns({"a": fail, "b": lambda: None}, 1)
    assert found["a"] == ([], str(error))
    assert len(found["b"][0]) == 1


def test_no_share_without_figures() -> None:
    assert Timing("a", "fp32", "decoder", 1, 8, 8, problem="it failed").share is None


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        (
            {"sizes": [(9, 8)]},
            SizeError,
            "size 9x8 (height x width) cannot be timed: both must be multiples of 4; the nearest valid sizes are 8x8 "
            "or 12x8",
        ),
        ({"sizes": (8, 8)}, InputError, "sizes is (8, 8); it must be a list of (height, width), such as [(512, 768)]"),
        ({"rounds": 0}, InputError, "rounds is 0; it must be 1 or more"),
        ({"batches": [1, 0]}, InputError, "batch is 0; it must be 1 or more"),
        ({"backends": "tensorrt"}, InputError, "backends is a string; give a list: ['tensorrt']"),
        (
            {"backends": ["tensorflow"]},
            InputError,
            "there is no backend 'tensorflow'; there is: tensorrt, tensorrt-rtx",
        ),
        (
            {"backends": ["openvino:int8"]},
            InputError,
            "there is no precision 'int8'; there is: fp32, fp16, bf16",
        ),
    ],
)
def test_bad_input(
    bundle: Bundle,
    options: dict[str, object],
    error: type[Exception],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measured, "_of_cpu", lambda: pytest.fail("measured for seconds before"))
    with pytest.raises(error) as refused:
        bench_bundle(bundle, **options)  # type: ignore[arg-type]
    assert str(refused.value).startswith(reason)
    assert "--pad" not in str(refused.value)


def test_on_the_command_line(vaedeploy: Callable[..., Ended], bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_of_cpu", lambda: Ceilings("CPU", {"fp32": 1e11}, 1e10))  # measured above
    ended = vaedeploy("bench", bundle.path, "--backend", *CPU, "--size", "8x12", "--batch", 2, "--rounds", 1)
    header, *rows, ceilings = ended.out.splitlines()
    assert re.split("  +", header) == [
        *("backend", "precision", "part", "size", "ms", "range, ms", "floor, ms", "floor, % of the time", "problem")
    ]
    assert [row.split()[:4] for row in rows] == [
        ["onnxruntime-cpu", "fp32", "encoder", "2x8x12"],
        ["onnxruntime-cpu", "fp32", "decoder", "2x8x12"],
    ]
    assert ceilings == "CPU: a large matrix product at 0.1 TFLOP/s in fp32; a large copy at 10 GB/s"
    told = json.loads(vaedeploy("bench", bundle.path, "--size", "8x12", "--rounds", 1, "--json").out)
    assert told["timings"][0]["part"] == "encoder"
    wrong = vaedeploy("bench", bundle.path, "--size", "large")
    assert (wrong.code, "'large' is not a size; give height x width in pixels" in wrong.err) == (2, True)
    assert vaedeploy("bench", bundle.path, "--size", f"{'9' * 5000}x8").code == 2


def test_nothing_there(vaedeploy: Callable[..., Ended], tmp_path: Path) -> None:
    assert vaedeploy("bench", tmp_path / "none").code == 2


@pytest.mark.slow
def test_noise_is_timed_where_there_are_no_photographs(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """With [cpu] and [build] alone there is no scikit-image."""
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    found = bench_bundle(bundle, backends=CPU, sizes=[(8, 12)], rounds=1)
    assert [(t.part, t.problem) for t in found.timings] == [("encoder", None), ("decoder", None)]


def test_a_size_that_no_backend_takes_is_told_in_its_rows(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of engines alone, the latent to decode cannot be made by encoding; 24x24 exceeds all of their ranges."""
    stand_in(built, monkeypatch)
    monkeypatch.setattr("vaedeploy.pipeline.bench.measure_ceilings", lambda *_: None)
    monkeypatch.setattr("vaedeploy.pipeline.bench.problem_of", lambda *_: None)
    found = bench_bundle(built, backends=["tensorrt-rtx"], sizes=[(24, 24)], rounds=1)
    assert [(t.part, t.ms) for t in found.timings] == [("encoder", None), ("decoder", None)]
    assert all(str(t.problem).startswith("no engine takes 1x24x24") for t in found.timings)
    both = bench_bundle(built, backends=["onnxruntime-cpu", "tensorrt-rtx"], sizes=[(24, 24)], rounds=1)
    assert [t.backend for t in both.timings if t.problem] == ["tensorrt-rtx"] * 2


def test_ceilings_leave_pytorch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    during = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(measured, "_rates", lambda *_: during.append(setting.fp32_precision))
    try:
        setting.fp32_precision = "tf32"
        measured.measure_ceilings("tensorrt", 0)
        assert (during, setting.fp32_precision) == (["ieee"], "tf32")
    finally:
        setting.fp32_precision = before


def test_a_backend_is_timed_in_each_precision_that_is_named(bundle: Bundle) -> None:
    names = ["onnxruntime-cpu", "openvino", "openvino:bf16", "onnxruntime-cpu:bf16"]
    found = bench_bundle(bundle, backends=names, sizes=[(24, 24)], rounds=1).timings
    timed = [(timing.backend, timing.precision) for timing in found if timing.ms is not None]
    lower = [("openvino", "bf16")] * openvino.takes_bfloat16()
    assert timed == [("onnxruntime-cpu", "fp32"), ("openvino", "fp32"), *lower] * 2
    problems = {(timing.backend, timing.problem) for timing in found if timing.ms is None}
    told = f"onnxruntime-cpu computes bundle {bundle.path} in fp32, and not in bf16"
    assert ("onnxruntime-cpu", told) in problems
    assert {backend for backend, _ in problems} == {"onnxruntime-cpu"} | ({"openvino"} - dict(lower).keys())


@pytest.mark.slow
def test_all_that_works_here_is_timed_unless_something_is_named(bundle: Bundle) -> None:
    found = bench_bundle(bundle, sizes=[(8, 12)], rounds=1).timings
    works = [name for name in BACKENDS if name not in ENGINES and problem_of(name) is None]
    lower = ["openvino"] * ("openvino" in works and openvino.gains_from_bfloat16())
    assert [timing.backend for timing in found] == [*works, *lower] * 2
