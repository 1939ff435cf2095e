"""A backend of this machine against the bundle: engines on a stand-in for the device, and graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from arrays import noise
from bundle_folders import edit
from command_line import Ended
from engine_files import DECODER, ENCODER, SIZES, write_profile
from host_gpu import HostPlan, stand_in
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.cli.tables.verify import closing_lines
from vaedeploy.errors import BackendError, BundleError, InputError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.pipeline.verify import verify_bundle
from vaedeploy.runtime import VAE, openvino
from vaedeploy.runtime.verdicts import report_name
from vaedeploy.system.hashing import file_sha256
from vaedeploy.system.machine import cpu_name
from vaedeploy.values.kinds import Precision

# ------------------------------------------------------------------------------------------------------------- the gate


@pytest.fixture
def own(engine_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A copy of the bundle that may be written to, on a machine as if with its GPU."""
    copied = Bundle.open(shutil.copytree(engine_bundle.path, tmp_path / "tiny"))
    stand_in(copied, monkeypatch)
    return copied


def test_the_gate_says_nothing_of_what_it_is_about_to_prove(own: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    verify_bundle(own, backend="tensorrt-rtx")
    assert caplog.messages == []


def test_engines_that_are_right_pass_the_gate(own: Bundle) -> None:
    report = verify_bundle(own, backend="tensorrt-rtx", profile="mine")
    assert report.passed
    found = [(case.part, case.name, case.batch, case.height) for case in report.cases if case.output != "latent_std"]
    assert found == [
        (part, name, *size)
        for part in ("encoder", "decoder")
        for name, *size in [
            ("small of mine", 1, 8),
            ("any of mine", 1, 4),
            ("any of mine", 1, 8),
            ("any of mine", 2, 16),
        ]
    ]
    made = check_bundle(own.path)
    for name in (ENCODER, DECODER):
        verification = made.manifest.engines[name].verification
        assert verification is not None
        assert (verification.passed, verification.backend) == (True, "tensorrt-rtx")
        assert verification.cases == (8 if name == ENCODER else 4)  # the encoder has two outputs
    assert made.manifest.verification == own.manifest.verification
    assert (made.path / "report" / "tensorrt-rtx.mine.json").exists()  # beside those of other profiles


def test_every_optimisation_profile_runs_at_its_own_corners(own: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimum of the wide one is a size that the tight one takes as well."""
    plans: list[HostPlan] = []

    def load(path: Path, *_: object) -> HostPlan:
        plans.append(HostPlan(own, path.relative_to(own.path).as_posix()))
        return plans[-1]

    monkeypatch.setattr("vaedeploy.runtime.tensorrt.load_plan", load)
    verify_bundle(own, backend="tensorrt-rtx")
    for name in (ENCODER, DECODER):
        events = [event for plan in plans if plan.name == name for event in plan.events if event.startswith("shape")]
        assert events == ["shape 0 1x8x8", "shape 1 1x4x4", "shape 1 1x8x8", "shape 1 2x16x16"]


def test_every_engine_runs_before_it_is_verified(own: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two profiles with equal sizes, one would answer for both."""
    write_profile(tmp_path, "twin", precision='"fp32"', shapes=SIZES)
    made = build_engines(own, ["twin"], folder=tmp_path)
    monkeypatch.setattr(
        "vaedeploy.runtime.tensorrt.load_plan",
        lambda path, *_: HostPlan(made, path.relative_to(made.path).as_posix()),
    )
    report = verify_bundle(made, backend="tensorrt-rtx")
    forms = {case.form for case in report.cases}
    assert forms == {"mine tensorrt-rtx fp32", "twin tensorrt-rtx fp32"}


def test_a_verified_engine_is_used_without_a_warning(own: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    verify_bundle(own, backend="tensorrt-rtx")
    caplog.clear()
    with VAE(own.path) as vae:
        vae.decode(noise(1, 2, 2, 2))
    assert caplog.messages == []


def test_engines_that_are_wrong_do_not_pass(
    own: Bundle, monkeypatch: pytest.MonkeyPatch, vaedeploy: Callable[..., Ended]
) -> None:
    """The decoder's engine computes something else: a thousandth too bright."""
    model = onnx.load(own.graph("decoder"))
    (add,) = (node for node in model.graph.node if node.output[0] == "image")
    add.output[0] = "dark"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.001), "gain"))
    model.graph.node.insert(1, onnx.helper.make_node("Mul", ["dark", "gain"], ["image"]))
    wrong = onnxruntime.InferenceSession(model.SerializeToString())

    def load(path: Path, *_: object) -> HostPlan:
        plan = HostPlan(own, path.relative_to(own.path).as_posix())
        if plan.half.part == "decoder":
            plan.session = wrong
        return plan

    monkeypatch.setattr("vaedeploy.runtime.tensorrt.load_plan", load)
    ended = vaedeploy("verify", own.path, "--backend", "tensorrt-rtx", "--profile", "mine")
    assert ended.code == 3
    assert "relative error is 0.001; it must be at most 2e-05" in ended.out
    engines = check_bundle(own.path).manifest.engines
    assert not engines[DECODER].verification.passed  # type: ignore[union-attr]


def test_the_gate_of_graphs(own: Bundle) -> None:
    """On the backend that the reference itself runs on: not one value differs."""
    report = verify_bundle(own, backend="onnxruntime-cpu")
    assert report.passed
    assert report.worst["max_abs"] == 0


def test_the_gate_needs_something_to_compare_with(own: Bundle) -> None:
    edit(own, lambda told: told.update(verification=None))
    with pytest.raises(BundleError, match=r"is not verified, so nothing can be compared with it. Run: vaedeploy "):
        verify_bundle(own, backend="tensorrt-rtx")
    with pytest.raises(InputError, match="onnxruntime-cpu runs graphs and has no profiles"):
        verify_bundle(own, backend="onnxruntime-cpu", profile="mine")


def test_a_profile_without_a_backend_is_a_mistake(vaedeploy: Callable[..., Ended], engine_bundle: Bundle) -> None:
    ended = vaedeploy("verify", engine_bundle.path, "--profile", "mine")
    assert (ended.code, ended.out) == (2, "")
    assert "--profile needs --backend: it says how a backend computes." in ended.err


@pytest.mark.slow
def test_openvino_is_judged_by_its_precision_and_timed_beside_onnx_runtime(
    demo_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    precision: Precision = "bf16" if openvino.gains_from_bfloat16() else "fp32"
    own = Bundle.open(shutil.copytree(demo_bundle.path, tmp_path / "demo"))
    report = verify_bundle(own, backend="openvino", precision=precision)
    assert (report.passed, report.backend, report.precision) == (True, "openvino", precision)
    assert {case.precision for case in report.cases} == {precision}
    assert report.pace is not None
    assert report.pace > 0
    assert f"pace: a decode takes {report.pace:.2f} of ONNX Runtime's time on this CPU" in closing_lines(report)
    name = report_name("openvino", precision, cpu_name())
    noted = Bundle.open(own.path)
    assert json.loads(noted.read(name))["pace"] == report.pace
    assert noted.verified  # by the graphs' own verification
    caplog.clear()
    with VAE(own.path, "openvino", precision=precision) as vae:
        vae.decode(np.zeros((1, 16, 2, 2), np.float32))
    assert caplog.messages == []
    leads = precision == "fp32" and report.pace < 1  # bfloat16 is taken only where it is asked for
    with VAE(own.path) as vae:
        assert vae.backend == ("openvino" if leads else "onnxruntime-cpu")


def test_a_node_that_is_refused_is_told_with_its_module(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    bundle = tiny_bundle(tmp_path / "tiny")
    model = onnx.load(bundle.graph("encoder"), load_external_data=False)
    model.graph.node[0].attribute[0].ints.append(4)  # strides along three axes
    model.graph.node[0].metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'encoder', 'encoder.conv_in', 'conv2d']"
    )
    own = bundle.path / "encoder.ov.onnx"
    onnx.save(model, own)

    def add(told: dict[str, Any]) -> None:
        told["graphs"]["encoder"]["openvino"] = own.name
        told["files"][own.name] = {"sha256": file_sha256(own), "bytes": own.stat().st_size}

    edit(bundle, add)
    with pytest.raises(BackendError) as refused:
        verify_bundle(bundle.path, backend="openvino")
    assert str(refused.value).startswith(f"OpenVINO cannot load {own} on CPU: ")
    assert str(refused.value).endswith(". moments is of encoder.conv_in in PyTorch")


@pytest.mark.parametrize(("option", "value"), [("--precision", "bf16"), ("--device", "GPU.0")])
def test_how_to_compute_without_a_backend_is_a_mistake(
    vaedeploy: Callable[..., Ended], engine_bundle: Bundle, option: str, value: str
) -> None:
    ended = vaedeploy("verify", engine_bundle.path, option, value)
    assert (ended.code, ended.out) == (2, "")
    assert f"{option} needs --backend: it says how a backend computes." in ended.err


def test_a_device_that_is_not_there(vaedeploy: Callable[..., Ended], engine_bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    ended = vaedeploy("verify", engine_bundle.path, "--backend", "openvino", "--device", "GPU.7")
    assert (ended.code, ended.out) == (1, "")
    assert "OpenVINO has no device 'GPU.7' here; it has: CPU" in ended.err
    ended = vaedeploy("verify", engine_bundle.path, "--backend", "onnxruntime-cpu", "--device", "GPU.7")
    assert (ended.code, ended.out) == (2, "")
    assert "device is 'GPU.7', as OpenVINO names one; give backend='openvino' too, or a number" in ended.err
