"""Who answers: what each backend needs, which engines can run here, and what is told where they cannot."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from arrays import noise
from engine_files import DECODER, ENCODER, SIZES, write_profile
from host_gpu import HostDevice, HostPlan
from tiny_bundle import tiny_bundle
from tiny_inputs import run_python

from vaedeploy.bundle import Bundle, edit_bundle
from vaedeploy.bundle.manifest import Verification
from vaedeploy.errors import BackendError, EngineError, InputError, SizeError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.runtime import VAE, onnxruntime_cpu, onnxruntime_cuda
from vaedeploy.runtime.backends import find_candidates
from vaedeploy.runtime.candidate import Settings
from vaedeploy.system.gpu import Gpu, cuda_devices
from vaedeploy.system.installs import install_command


def test_import_is_light() -> None:
    script = "import sys, vaedeploy.runtime; print(*sorted(sys.modules))"
    modules = {name.split(".")[0] for name in run_python(script).stdout.split()}
    assert "numpy" in modules
    assert not modules & {"torch", "onnx", "onnxruntime", "onnxscript", "diffusers", "click", "rich", "PIL"}


def test_runtime_needs_numpy_msgspec_and_one_backend_only(bundle: Bundle) -> None:
    script = f"""
import sys
import msgspec
import numpy as np
from vaedeploy.runtime import VAE, onnxruntime_cpu, onnxruntime_cuda
from vaedeploy.runtime.backends import find_candidates
with VAE({str(bundle.path)!r}) as vae:
    vae.decode(vae.encode(np.zeros((8, 8, 3), np.uint8)))
print(*sorted(sys.modules))
"""
    modules = {name.split(".")[0] for name in run_python(script).stdout.split()}
    assert "onnxruntime" in modules
    assert not modules & {"torch", "onnx", "onnxscript", "diffusers", "click", "rich", "PIL"}


def test_backend_that_is_not_installed_is_told(bundle: Bundle) -> None:
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    script = f"""
import sys
sys.modules["onnxruntime"] = sys.modules["openvino"] = None
from vaedeploy.runtime import VAE, onnxruntime_cpu, onnxruntime_cuda
from vaedeploy.runtime.backends import find_candidates
VAE({str(bundle.path)!r})
"""
    done = run_python(script)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "vaedeploy.errors.BackendError: ONNX Runtime cannot be imported (import of onnxruntime halted; None in "
        f"sys.modules). Install it: {install_command('cpu')}. OpenVINO cannot be imported (import of openvino "
        f"halted; None in sys.modules). Install it: {install_command('openvino')}"
    )


def test_engines_answer_first(
    gpu: HostDevice, engine_bundle: Bundle, expected: VAE, caplog: pytest.LogCaptureFixture
) -> None:
    latent = noise(3, 2, 2, 2)
    with VAE(engine_bundle.path) as vae:
        assert vae.backend == "tensorrt-rtx"
        image = vae.decode(latent)
        np.testing.assert_array_equal(image, expected.decode(latent))
        np.testing.assert_array_equal(vae.encode(image), expected.encode(image))
    assert gpu.device_bytes > 0
    assert [record.getMessage() for record in caplog.records] == [
        f"{engine_bundle.path / name} was never compared with PyTorch on its GPU; its images may be wrong. Run: "
        f"vaedeploy verify {engine_bundle.path} --backend tensorrt-rtx --profile mine"
        for name in (DECODER, ENCODER)
    ]


def test_an_engine_that_failed_its_verification_is_said_to_have_failed(
    gpu: HostDevice,
    engine_bundle: Bundle,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = Verification(False, "the float32 graph", "tensorrt-rtx", {"rel_l2": 1.0}, 3)
    copied = Bundle.open(shutil.copytree(engine_bundle.path, tmp_path / "tiny"))
    engines = copied.manifest.engines.items()
    noted = {name: msgspec.structs.replace(info, verification=failed) for name, info in engines}
    with edit_bundle(copied) as edit:
        edit.put(engines=noted)

    def load(path: Path, *_: object) -> HostPlan:
        return HostPlan(copied, path.relative_to(copied.path).as_posix())

    monkeypatch.setattr("vaedeploy.runtime.tensorrt.load_plan", load)
    with VAE(copied.path, "tensorrt-rtx") as vae:
        vae.decode(noise(1, 2, 2, 2))
    assert [record.getMessage() for record in caplog.records] == [
        f"{copied.path / DECODER} failed its verification on its GPU; its images may be wrong. Run: vaedeploy verify "
        f"{copied.path} --backend tensorrt-rtx --profile mine"
    ]


def test_an_engine_that_several_profiles_have_is_loaded_once(
    gpu: HostDevice, engine_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profile(tmp_path, "twin", precision='"fp32"', shapes=SIZES)
    copied = Bundle.open(shutil.copytree(engine_bundle.path, tmp_path / "tiny"))
    made = build_engines(copied, ["twin"], folder=tmp_path)
    loaded: list[str] = []

    def load(path: Path, *_: object) -> HostPlan:
        loaded.append(path.parent.name)
        return HostPlan(made, path.relative_to(made.path).as_posix())

    monkeypatch.setattr("vaedeploy.runtime.tensorrt.load_plan", load)
    with VAE(made.path, "tensorrt-rtx") as vae:
        vae.decode(noise(1, 2, 2, 2))
    assert len(loaded) == 1


def test_each_size_that_no_engine_takes_falls_to_the_next_backend_and_is_told_once(
    gpu: HostDevice, engine_bundle: Bundle, expected: VAE, caplog: pytest.LogCaptureFixture
) -> None:
    large, wide = noise(1, 2, 8, 8), noise(3, 2, 2, 8)
    with VAE(engine_bundle.path) as vae:
        for latent in (large, wide, large, wide):
            image = vae.decode(latent)
            np.testing.assert_array_equal(image, expected.decode(latent))
            vae.encode(image)
        assert vae.backend == "tensorrt-rtx"  # for what it does take
    told = [record.getMessage() for record in caplog.records if "in place of" in record.getMessage()]
    assert [text.split(" (batch")[0] for text in told] == [
        "onnxruntime-cpu answers in place of tensorrt-rtx: no engine takes 1x32x32",
        "onnxruntime-cpu answers in place of tensorrt-rtx: no engine takes 3x8x32",
    ]
    command = f"vaedeploy build {engine_bundle.path} --profile my-mine --profiles DIR --backend tensorrt-rtx"
    assert told[0].endswith(f"write 32x32 = {{ height = 32, width = 32 }} under [shapes] there, and run: {command}")
    with VAE(engine_bundle.path, "tensorrt-rtx") as vae, pytest.raises(SizeError, match="no engine takes 1x32x32"):
        vae.decode(large)


def test_a_profile_that_the_bundle_does_not_have(gpu: HostDevice, engine_bundle: Bundle) -> None:
    with VAE(engine_bundle.path, "tensorrt-rtx", profile="mine") as vae:
        assert vae.backend == "tensorrt-rtx"
    with pytest.raises(InputError) as refused:
        VAE(engine_bundle.path, profile="t4")
    assert str(refused.value) == (
        f"bundle {engine_bundle.path} has no engines of profile 't4'; it has those of: mine. Build them: "
        f"vaedeploy build {engine_bundle.path} --profile t4"
    )


def test_without_a_gpu_engines_are_not_missed(engine_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """A machine that builds for others has bundles with engines, and runs them on its CPU."""
    if cuda_devices() > 0:
        pytest.skip("there is a GPU here")
    with VAE(engine_bundle.path) as vae:
        assert vae.backend == "onnxruntime-cpu"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_another_gpu(
    gpu: HostDevice, engine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in ("engine_candidates", "backends"):
        monkeypatch.setattr(f"vaedeploy.runtime.{module}.find_gpu", lambda number: Gpu("NVIDIA T4", "7.5", 15.0))
    with VAE(engine_bundle.path) as vae:
        assert vae.backend == "onnxruntime-cpu"
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told.startswith("tensorrt-rtx is not available: ")
    assert "it was built for compute capability 8.9, and NVIDIA T4 has 7.5" in told
    with pytest.raises(BackendError, match=r"compute capability 8.9, and NVIDIA T4 has 7.5"):
        VAE(engine_bundle.path, "tensorrt-rtx")


def test_a_bundle_without_engines(gpu: HostDevice, tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "tiny")
    with VAE(made.path) as vae:
        assert vae.backend == "onnxruntime-cpu"
    with pytest.raises(BackendError) as refused:
        VAE(made.path, "tensorrt")
    assert str(refused.value) == (
        f"bundle {made.path} has no engines of tensorrt. Build them: vaedeploy build {made.path} --profile NAME "
        "--backend tensorrt"
    )


def test_an_altered_engine_is_not_loaded(gpu: HostDevice, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_profile(tmp_path, precision='"fp32"', shapes=SIZES)
    made = build_engines(tiny_bundle(tmp_path / "tiny"), ["mine"], folder=tmp_path)
    data = bytearray((made.path / DECODER).read_bytes())
    data[-1] ^= 1
    (made.path / DECODER).write_bytes(data)
    latent = noise(1, 2, 2, 2)
    with VAE(made.path, "tensorrt-rtx") as vae, pytest.raises(EngineError, match="is altered: its sha256 is"):
        vae.decode(latent)
    with VAE(made.path) as vae, VAE(made.path, "onnxruntime-cpu") as cpu:
        np.testing.assert_array_equal(vae.decode(latent), cpu.decode(latent))
        assert vae.backend == "onnxruntime-cpu"
    assert any(
        record.getMessage().startswith("tensorrt-rtx cannot be used, so onnxruntime-cpu is used instead: ")
        for record in caplog.records
    )


def test_a_profile_whose_engines_cannot_run_here_is_told_of(
    engine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vaedeploy.runtime.tensorrt.problem", lambda *_: "no GPU")
    with VAE(engine_bundle.path) as vae:
        backend = vae.backend
    assert caplog.messages == []  # where nobody asked for engines, none is what most machines have
    with VAE(engine_bundle.path, profile="mine") as vae:
        assert repr(vae) == f"VAE({str(engine_bundle.path)!r}, tiny, {backend})"
    assert caplog.messages == ["tensorrt-rtx is not available, so its engines of profile mine are not used: no GPU"]
    with pytest.raises(InputError, match="onnxruntime-cpu runs graphs and has no profiles"):
        VAE(engine_bundle.path, "onnxruntime-cpu", profile="mine")


@pytest.fixture
def cuda_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's provider, which stands for CUDA's."""
    monkeypatch.setattr(onnxruntime_cuda, "PROVIDER", onnxruntime_cpu.PROVIDER)
    monkeypatch.setattr(onnxruntime_cuda, "problem", lambda device: None)


def images(bundle: Bundle, backend: str) -> list[np.ndarray]:
    """What each candidate of the backend decodes, the preferred one first."""
    latent = noise(2, 2, 3, 4)
    found = find_candidates(bundle, Settings(backend=backend))
    return [candidate.open("decoder").run(["image"], {"latent": latent})[0] for candidate in found]


@pytest.mark.usefixtures("cuda_stand_in")
@pytest.mark.filterwarnings("ignore:Duplicate provider:UserWarning")
@pytest.mark.parametrize(
    "report",
    [
        None,
        b'{"passed": false}',
        b'{"passed": true}',
        b"",
        b"[]",
        b"{}",
        b'{"passed": "no"}',
        b'{"passed": true, "cases": ' + b"[" * 100_000,
    ],
    ids=["no report", "failed", "passed", "empty", "a list", "no verdict", "a word", "nested"],
)
def test_the_fused_form_is_run_and_told_of_unless_it_was_verified(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, report: bytes | None
) -> None:
    made = tiny_bundle(tmp_path / "tiny", fused_form="runs here", report=report)
    plain, in_float32 = images(made, "onnxruntime-cpu")
    fused, after_nan = images(made, "onnxruntime-cuda")
    np.testing.assert_array_equal(fused, -plain)
    np.testing.assert_array_equal(after_nan, in_float32)
    failed = report == b'{"passed": false}'
    state = "failed its verification on a GPU" if failed else "was never compared with PyTorch on a GPU"
    warning = (
        f"{made.path / 'decoder.cuda.onnx'} {state}; its images may be wrong. Run: "
        f"vaedeploy verify {made.path} --backend onnxruntime-cuda"
    )
    told = [] if report == b'{"passed": true}' else [warning]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == told


@pytest.mark.usefixtures("cuda_stand_in")
@pytest.mark.filterwarnings("ignore:Duplicate provider:UserWarning")
def test_without_an_operator_the_form_for_any_provider_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = tiny_bundle(tmp_path / "tiny", fused_form="has no kernel")
    plain, _ = images(made, "onnxruntime-cpu")
    np.testing.assert_array_equal(images(made, "onnxruntime-cuda")[0], plain)
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told.startswith("the decoder runs without fused operators: ")
    assert "NhwcConv" in told
