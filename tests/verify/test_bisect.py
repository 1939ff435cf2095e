"""Faults put into real graphs: the module that has one is the first that is named."""

from __future__ import annotations

import hashlib
import html
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from bundle_folders import edit
from command_line import Ended

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.golden import NAME as GOLDEN
from vaedeploy.bundle.golden import decode_golden, encode_golden
from vaedeploy.errors import BundleError
from vaedeploy.graph.graph import module_path
from vaedeploy.numerics.divergence import Difference
from vaedeploy.numerics.maxima import measure_maxima
from vaedeploy.pipeline.export import export_vae
from vaedeploy.pipeline.verify import verify_bundle
from vaedeploy.source import load_reference
from vaedeploy.testing.inflation import inflate
from vaedeploy.testing.tiny import tiny_reference
from vaedeploy.values.kinds import Part, Precision
from vaedeploy.verify.advice import advise
from vaedeploy.verify.bisect import FLOORS, bisect_bundle, find_jumps
from vaedeploy.verify.report import Case, Report
from vaedeploy.verify.steps import STEP_COLUMNS
from vaedeploy.verify.traces import Bisection, Step, Trace

Fault = Callable[[np.ndarray], np.ndarray]


def one_percent(weight: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=weight.shape)
    return (weight * (1 + 0.01 * noise)).astype(weight.dtype)


def rounded(weight: np.ndarray) -> np.ndarray:
    return weight.astype(ml_dtypes.bfloat16).astype(weight.dtype)


def copy(bundle: Bundle, out: Path) -> Bundle:
    shutil.copytree(bundle.path, out)
    return Bundle.open(out)


def broken(source: Bundle, out: Path, part: Part, module: str, fault: Fault) -> Bundle:
    """A copy in which the weights of one PyTorch module are others, in the form that ONNX Runtime runs."""
    bundle = copy(source, out)
    path = bundle.graph(part, "onnxruntime")
    model = ir.load(path)
    nodes = [n for n in model.graph if n.op_type in ("Conv", "MatMul") and module_path(n) == module]
    assert nodes, module
    for node in nodes:
        value = node.inputs[1]
        value.const_value = ir.tensor(fault(value.const_value.numpy()), name=value.name)
    ir.save(model, path)  # into the graph's own file: other graphs read those beside it
    data = path.read_bytes()
    info = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(bundle, lambda told: told["files"].update({path.name: info}))
    return Bundle.open(out)


def only(bisection: Bisection, part: Part) -> Trace:
    (trace,) = [trace for trace in bisection.traces if trace.part == part]
    return trace


@pytest.mark.slow
@pytest.mark.parametrize("fault", [one_percent, rounded])
@pytest.mark.parametrize(
    ("part", "module", "operator"),
    [
        ("decoder", "decoder.body.0", "Conv"),
        ("decoder", "decoder.body.4", "Conv"),  # folded into four
        ("decoder", "decoder.body.8", "Conv"),
        ("encoder", "encoder.body.3", "Conv"),
        ("encoder", "encoder.body.6", "Conv"),
    ],
)
def test_the_module_whose_weights_are_others(
    tiny_vae_bundle: Bundle, tmp_path: Path, part: Part, module: str, operator: str, fault: Fault
) -> None:
    bundle = broken(tiny_vae_bundle, tmp_path / "tiny", part, module, fault)
    report = verify_bundle(bundle)
    assert not report.passed
    found = bisect_bundle(bundle, report)
    trace = only(found, part)
    first, *others = trace.jumps
    assert (first.module, first.operator, others) == (module, operator, [])
    assert first.before < 1e-6 < FLOORS["fp32"] < first.after < 0.02
    assert (first.headroom, first.non_finite) == (None, 0)
    (advice,) = [line for line in advise(found, report) if line.startswith(f"{part}, ")]
    assert advice.startswith(f"{part}, onnxruntime: {first.tensor} ({operator} of {module}) is the first that differs")
    # Round trips fail as well, for which the other half is not to blame.
    assert "round trip" in {case.part for case in report.cases if not case.passed}
    assert len(found.traces) == 1
    trips = Report(report.precision, "", "", tuple(c for c in report.cases if c.passed or c.part == "round trip"))
    other: Part = "encoder" if part == "decoder" else "decoder"
    both = bisect_bundle(bundle, trips)
    assert (len(only(both, part).jumps), only(both, other).jumps) == (1, ())


@pytest.mark.parametrize(
    "module",
    [
        "decoder.decoder.conv_in",
        "decoder.decoder.mid_block.attentions.0.to_v",
        "decoder.decoder.up_blocks.1.upsamplers.0.conv",
        "decoder.decoder.up_blocks.3.resnets.1.conv1",
        "decoder.decoder.conv_out",
    ],
)
def test_modules_of_the_demo_vae(demo_bundle: Bundle, tmp_path: Path, module: str) -> None:
    bundle = broken(demo_bundle, tmp_path / "demo", "decoder", module, one_percent)
    found = bisect_bundle(bundle)
    assert only(found, "decoder").jumps[0].module == module
    assert only(found, "encoder").jumps == ()


@pytest.mark.slow
def test_one_percent_in_a_half_precision_graph(tiny_fp16_bundle: Bundle, tmp_path: Path) -> None:
    bundle = broken(tiny_fp16_bundle, tmp_path / "tiny", "decoder", "decoder.body.4", one_percent)
    found = bisect_bundle(bundle)
    (first,) = only(found, "decoder").jumps
    assert (first.module, first.before < 1e-3, 5e-3 < first.after < 0.02) == ("decoder.body.4", True, True)
    assert first.headroom == pytest.approx(math.log2(65504 / first.largest))
    report = verify_bundle(bundle)
    assert advise(bisect_bundle(bundle, report), report)[-1] == (
        f"decoder, onnxruntime: {first.tensor} (Conv of decoder.body.4) is the first that loses digits. In this order: "
        f"keep these nodes in float32 (--keep-fp32, once for each): {first.node}; or export with --precision bf16, "
        "if it is range that is missing, or fp32."
    )


def test_a_healthy_bundle(tiny_vae_bundle: Bundle, tmp_path: Path) -> None:
    bundle = copy(tiny_vae_bundle, tmp_path / "tiny")
    report = verify_bundle(bundle)
    found = bisect_bundle(bundle, report)
    assert [(t.part, t.form, t.precision, t.case, t.jumps) for t in found.traces] == [
        (part, "onnxruntime", "fp32", "odd", ()) for part in ("encoder", "decoder")
    ]
    for trace, line in zip(found.traces, advise(found, report), strict=True):
        assert trace.worst.after < 1e-5
        assert line == (
            f"{trace.part}, onnxruntime: nothing jumps in {trace.compared} tensors; the largest error is "
            f"{trace.worst.after:.1e}, in {trace.worst.tensor}. There is nothing to do."
        )


@pytest.mark.parametrize(("bundle", "traces"), [("tiny_fp16_bundle", 2), ("tiny_bf16_bundle", 4)])
def test_healthy_half_precision(request: pytest.FixtureRequest, bundle: str, traces: int) -> None:
    found = bisect_bundle(request.getfixturevalue(bundle))
    assert [trace.jumps for trace in found.traces] == [()] * traces
    for trace in found.traces:
        assert trace.worst.after < FLOORS[trace.precision]


@pytest.mark.slow
@pytest.mark.usefixtures("verified_smaller")
def test_the_first_tensor_that_overflows(small_vae: Path, tmp_path: Path) -> None:
    """It is the first that does not fit, by maxima of the float32 graph that are measured apart."""
    vae = load_reference(small_vae)
    inflate(vae.decoder, repeat(1e5), repeat(1.0))
    bundle = export_vae(vae, out=tmp_path / "inflated", precision="fp16", rewrite=False, verify=False)
    report = verify_bundle(bundle, reference=vae, page=tmp_path / "page")
    bundle = Bundle.open(bundle.path)  # which has golden cases now
    found = bisect_bundle(bundle, report)
    assert report.bisection == found
    assert [trace.part for trace in found.traces] == ["decoder"]
    (trace,) = found.traces
    cases = decode_golden(bundle.file(GOLDEN).read_bytes(), bundle.manifest.vae.identity)
    (case,) = [case for case in cases if case.name == trace.case]
    assert case.photo.shape[0] * case.photo.shape[1] * case.photo.shape[2] == 64 * 64
    portable = ir.load(bundle.graph("decoder"))
    maxima = measure_maxima(portable, [{"latent": next(iter(case.latents.values()))}])
    order = [value.name for node in portable.graph for value in node.outputs if value.name in maxima]
    expected = next(name for name in order if maxima[name] >= 65520)
    first = trace.jumps[0]
    assert (first.tensor, first.largest) == (expected, pytest.approx(maxima[expected], rel=1e-5))
    assert first.before < FLOORS["fp16"]
    assert not math.isfinite(first.after)
    assert first.headroom == pytest.approx(math.log2(65504 / first.largest))
    assert first.headroom < 0 < first.non_finite
    (advice,) = advise(found, report)
    assert f"{first.tensor} ({first.operator} of {first.module}) overflows: it reaches {first.largest:.3g}" in advice
    assert "export it again without --no-rewrite" in advice
    assert f"(--keep-fp32, once for each): {first.node}" in advice
    assert "--precision bf16" in advice


@pytest.mark.slow
def test_a_rescaled_graph_is_compared_with_what_it_stores(inflated_bundle: Bundle) -> None:
    """Real weights in fp16, none of which is to blame."""
    bundle = inflated_bundle
    assert bundle.verified
    found = bisect_bundle(bundle)
    assert [(trace.part, trace.rescaled, trace.jumps) for trace in found.traces] == [
        ("encoder", True, ()),
        ("decoder", True, ()),
    ]
    assert all(trace.worst.after < FLOORS["fp16"] for trace in found.traces)
    other = msgspec.structs.replace(
        bundle.manifest, rewrites=bundle.manifest.rewrites | {"decoder.ort.onnx": {"rescale": 1}}
    )
    with pytest.raises(BundleError, match=r"^decoder.ort.onnx was rescaled in 1 places, and this version would in \d+"):
        bisect_bundle(Bundle(bundle.path, other))


def test_what_fails_as_a_whole_has_no_jump(tiny_vae_bundle: Bundle, tmp_path: Path) -> None:
    """The reference is another: all forms are off, and none from the other."""
    bundle = copy(tiny_vae_bundle, tmp_path / "tiny")
    cases = decode_golden(bundle.file(GOLDEN).read_bytes(), bundle.manifest.vae.identity)
    for case in cases:
        case.image[...] += 0.1
    bundle.update(files={GOLDEN: encode_golden(cases, bundle.manifest.vae.identity)})
    report = verify_bundle(bundle)
    found = bisect_bundle(bundle, report)
    assert {trace.jumps for trace in found.traces} == {()}
    for line in advise(found, report):
        assert "It computes what the portable graph does, which failed as well" in line
    some = Report(report.precision, "", "", tuple(c for c in report.cases if c.form != "portable"))
    for line in advise(found, some):
        assert "what is left are ONNX Runtime's own optimisations" in line


@pytest.mark.slow
@pytest.mark.usefixtures("verified_smaller")
def test_a_bundle_of_portable_graphs_alone(tmp_path: Path) -> None:
    bundle = export_vae(tiny_reference(), out=tmp_path / "plain", rewrite=False, verify=False)
    with pytest.raises(BundleError) as refused:
        bisect_bundle(bundle.path)
    assert str(refused.value) == (
        f"bundle {bundle.path} has no golden.safetensors to run on. Run: vaedeploy verify {bundle.path}"
    )
    report = verify_bundle(bundle, reference=tiny_reference())
    found = bisect_bundle(bundle.path)
    assert found == Bisection((), advise(found, None))
    verdict = "failed" if not report.passed else "has only the portable graphs"
    assert verdict in advise(found, report)[0]


def difference(tensor: str, sources: str, rel_l2: float, non_finite: float = 0.0) -> Difference:
    return Difference(tensor, f"at_{tensor}", "Conv", "", "FLOAT16", tuple(sources.split()), rel_l2, 1.0, non_finite)


@pytest.mark.parametrize(
    ("rows", "jumps"),
    [
        ([("a", "", 0.9e-2), ("b", "a", 0.9e-2)], ""),  # below the floor
        ([("a", "", 1.1e-2)], "a"),
        ([("a", "", 0.5e-2), ("b", "a", 1.4e-2)], ""),  # below three times what it is made from
        ([("a", "", 0.5e-2), ("b", "a", 1.6e-2), ("c", "b", 4e-2)], "b"),
        ([("a", "", 1e-3), ("b", "", 1.1e-2), ("c", "a b", 2e-2)], "b"),  # the largest counts
        ([("a", "", math.inf, 0.1), ("b", "a", math.nan, 0.2), ("c", "b", 0.5)], "a"),  # what follows is no news
        ([("a", "", 1e-3), ("b", "a", math.nan, 1e-6), ("c", "a", 0.1)], "b c"),
    ],
)
def test_what_jumps(rows: list[tuple], jumps: str) -> None:
    assert [step.tensor for step in find_jumps([difference(*row) for row in rows], 1e-2)] == jumps.split()


@pytest.mark.slow
def test_the_command(vaedeploy: Callable[..., Ended], tiny_vae_bundle: Bundle, tmp_path: Path) -> None:
    tiny = copy(tiny_vae_bundle, tmp_path / "healthy")
    healthy = vaedeploy("verify", tiny.path, "--bisect")
    assert healthy.code == 0
    assert ". There is nothing to do.\n\n" in healthy.out
    assert "bisection" not in json.loads(vaedeploy("verify", tiny.path, "--json").out)

    bundle = broken(tiny_vae_bundle, tmp_path / "tiny", "decoder", "decoder.body.4", one_percent)
    failed = vaedeploy("verify", bundle.path, "--bisect")
    assert failed.code == 3
    lines = failed.out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("graph             part"))
    assert " ".join(lines[header].split()) == " ".join(STEP_COLUMNS)
    assert lines[header + 1].split()[:5] == ["onnxruntime", "fp32", "decoder", "1x32x32", "decoder.body.4"]
    advice = next(line for line in lines[header:] if line.startswith("decoder, onnxruntime: "))
    assert lines[-1].startswith("FAILED: ")
    page = tmp_path / "page"
    ended = vaedeploy("verify", bundle.path, "--bisect", "--json", "--report", page)
    assert ended.err.count("Bisecting: done") == 1  # for all: verdict, page and output
    document = json.loads(ended.out)
    assert document["passed"] is False
    assert all(line in html.unescape((page / "index.html").read_text()) for line in document["bisection"]["advice"])
    steps = [step for trace in document["bisection"]["traces"] for step in trace["jumps"]]
    assert [step["module"] for step in steps] == ["decoder.body.4"]
    assert len(document["bisection"]["advice"]) == len(document["bisection"]["traces"])
    plain = vaedeploy("verify", bundle.path)  # which bisects graphs that failed, and leaves out the tensors
    assert ", first at decoder.body.4" in plain.out
    assert advice in plain.out
    assert "graph             part" not in plain.out
    assert "--bisect" not in plain.err
    refused = vaedeploy("verify", bundle.path, "--bisect", "--backend", "onnxruntime-cuda")
    assert (refused.code, refused.out) == (2, "")
    assert "--bisect cannot be used with --backend: it compares the graphs on the CPU." in refused.err


PEAK = """
import sys
from pathlib import Path
from typing import Any
from vaedeploy.verify.bisect import bisect_bundle
bisection = bisect_bundle(sys.argv[1])
# Not what getrusage tells: that counts the memory of the process that started this one as well.
print([line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")][0])
print(*(step.module for trace in bisection.traces for step in trace.jumps))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells a process's peak on Linux only")
def test_full_size(full_size_bundle: Bundle, tmp_path: Path) -> None:
    """168 tensors of the decoder, which take 0.6 GB at this size, with two graphs' weights of 0.2 GB each."""
    module = "decoder.decoder.up_blocks.2.resnets.0.conv2"
    bundle = broken(full_size_bundle, tmp_path / "full", "decoder", module, one_percent)
    done = subprocess.run([sys.executable, "-c", PEAK, bundle.path], capture_output=True, text=True, check=True)
    peak, modules = done.stdout.splitlines()
    assert modules == module
    assert int(peak) * 1024 < 1.5e9


def sunk(largest: float, **more: Any) -> Bisection:
    step = Step("h", "conv", "Conv", "mid_block", 1e-4, 2e-2, largest, 30.0, 0.0)
    return Bisection((Trace("decoder", "onnxruntime", "fp16", "small", 1, 64, 64, 9, True, (step,), step),))


def case(*failures: str) -> Case:
    return Case("decoder", "small", "image", "onnxruntime", 1, 64, 64, 0.0, 0.0, 0.0, failures=failures)


def test_a_tensor_that_sinks_below_the_normal_numbers_is_told_as_that() -> None:
    place = "decoder, onnxruntime: h (Conv of mid_block) loses digits: no number there is larger than 1e-06, and below"
    (told,) = advise(sunk(1e-6), Report("fp16", "", "", (case("it is off"),)))
    assert told.startswith(
        f"{place} 6.1e-05 float16 has fewer the smaller a number is. In this order: keep these nodes"
    )


@pytest.mark.parametrize(
    ("precision", "finer"),
    [
        ("fp16", "fp32, and not bf16, which has 8 times coarser digits."),
        ("bf16", "fp16, which has 8 times finer digits, or fp32."),
    ],
)
def test_rounding_that_adds_up_asks_for_more_digits(precision: Precision, finer: str) -> None:
    (trace,) = sunk(1.0).traces
    grown = Bisection((msgspec.structs.replace(trace, precision=precision, jumps=()),))
    (told,) = advise(grown, Report(precision, "", "", (case("it is off"),)))
    assert told == (
        "decoder, onnxruntime: nothing jumps in 9 tensors; the largest error is 2.0e-02, in h. The error is rounding, "
        "and adds up by small steps, so that no node stands out for --keep-fp32: export with --precision " + finer
    )


@pytest.mark.parametrize("largest", [1e-6, 1.0])
def test_nothing_is_advised_where_every_case_passes(largest: float) -> None:
    (told,) = advise(sunk(largest), Report("fp16", "", "", (case(),)))
    assert told.endswith(". Every case still keeps its limits. There is nothing to do.")
