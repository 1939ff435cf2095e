"""TensorRT and TensorRT-RTX engines behind the runtime, on a real device. Skipped where there is none, or no
backend.
"""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import numpy as np
import on_gpu
import pytest
from on_gpu import latents_of_photos

from vaedeploy.bundle import Bundle
from vaedeploy.engines.profile import CAPABILITIES
from vaedeploy.errors import SizeError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.pipeline.export import export_vae
from vaedeploy.pipeline.verify import verify_bundle
from vaedeploy.runtime import VAE
from vaedeploy.runtime.backends import ENGINES, problem_of
from vaedeploy.system.gpu import find_gpu

GPU = find_gpu()


def _reason(backend: str) -> str | None:
    """Why engines of ``backend`` cannot be tried here."""
    if GPU is None:
        return "there is no CUDA device"
    if GPU.compute_capability not in CAPABILITIES[backend]:
        return f"{backend} has no compute capability {GPU.compute_capability}"
    return problem_of(backend)


pytestmark = pytest.mark.gpu
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(_reason(name) is not None, reason=str(_reason(name))))
    for name in ENGINES
]

PROFILE = """
gpu = "{gpu.name}"
compute_capability = "{gpu.compute_capability}"
memory_gib = {gpu.memory_gib}
backend = "{backend}"
precision = "fp16"
[shapes]
small = {{ height = 64, width = 64 }}
any = {{ batch = [1, 1, 2], height = [64, 128, 256], width = [64, 128, 256] }}
"""


@pytest.fixture(scope="module", params=BACKENDS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo VAE, verified, with engines in fp16 for this GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "here.toml").write_text(PROFILE.format(gpu=GPU, backend=request.param))
    made = export_vae("demo", out=folder / "demo")
    return build_engines(made, ["here"], folder=folder)


def backend_of(bundle: Bundle) -> str:
    return next(iter(bundle.manifest.engines.values())).identity.backend


@pytest.fixture
def vae(bundle: Bundle) -> VAE:
    return VAE(bundle.path, backend_of(bundle))


def test_the_gate(bundle: Bundle) -> None:
    """The engines against the verified graph, at every corner of both optimisation profiles, with the limits of
    fp16.
    """
    report = verify_bundle(bundle, backend=backend_of(bundle))
    assert report.passed, [case.failures for case in report.cases]
    corners = {("small of here", 1, 64), ("any of here", 1, 64), ("any of here", 1, 128), ("any of here", 2, 256)}
    assert {(case.name, case.batch, case.height) for case in report.cases} == corners
    assert all(info.verification.passed for info in Bundle.open(bundle.path).manifest.engines.values())


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (2, 8, 16), (5, 9, 11)])
def test_host_arrays(bundle: Bundle, vae: VAE, batch: int, height: int, width: int) -> None:
    latent = latents_of_photos(bundle, batch, height, width)
    with VAE(bundle.path, "onnxruntime-cpu") as cpu:
        for _ in range(3):  # the third is a CUDA graph
            assert np.abs(vae.decode(latent).astype(int) - cpu.decode(latent)).max() <= 3
        photo = cpu.decode(latent)
        assert on_gpu.relative_l2(vae.encode(photo), cpu.encode(photo)) < on_gpu.FP16


def test_arrays_of_pytorch_stay_on_the_gpu(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_arrays_of_pytorch(vae, latents_of_photos(bundle, 2, 16, 16))


def test_a_thread_of_its_own(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_a_thread_of_its_own(vae, latents_of_photos(bundle, 1, 16, 16))


def test_a_result_outlives_the_call_that_reads_it(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_a_result_outlives_what_reads_it(vae, latents_of_photos(bundle, 1, 8, 8))


def test_work_of_another_stream_is_waited_for(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_another_stream_is_waited_for(vae, latents_of_photos(bundle, 1, 16, 16))


def test_the_callers_array_is_not_written_too_early(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_out_is_not_written_too_early(vae, latents_of_photos(bundle, 1, 16, 16))


def test_many_threads(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_many_threads(vae, [latents_of_photos(bundle, 1, 8 + n, 8) for n in range(6)])


def test_memory_of_results_comes_back(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_memory_of_results_comes_back(vae, latents_of_photos(bundle, 1, 32, 32))


def test_what_no_engine_takes(bundle: Bundle, vae: VAE, caplog: pytest.LogCaptureFixture) -> None:
    large = latents_of_photos(bundle, 1, 40, 8)
    with pytest.raises(SizeError, match="no engine takes 1x320x64"):
        vae.decode(large)
    with caplog.at_level(logging.WARNING), VAE(bundle.path) as any_backend:
        assert any_backend.decode(large).shape == (1, 320, 64, 3)


def test_graphs_are_used(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """What could not be captured is told."""
    latent = latents_of_photos(bundle, 1, 8, 8)
    with VAE(bundle.path, backend_of(bundle)) as fresh:
        for _ in range(4):
            fresh.decode(latent)
    assert not [message for message in caplog.messages if "CUDA graphs" in message]


def test_another_gpu_or_stream_is_refused(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_another_gpu_or_stream_is_refused(vae, latents_of_photos(bundle, 1, 8, 8))


def test_a_full_gpu_and_then_another_call(bundle: Bundle) -> None:
    small, large = latents_of_photos(bundle, 1, 8, 8), latents_of_photos(bundle, 2, 32, 32)
    on_gpu.check_out_of_memory_and_then_another_call(lambda: VAE(bundle.path, backend_of(bundle)), small, large)


def test_nan_is_run_again_in_fp32(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """The engines are fp16, and ONNX Runtime has the graphs in float32."""
    latent = np.concatenate(
        [latents_of_photos(bundle, 1, 8, 8), np.full((1, bundle.manifest.latent.channels, 8, 8), 3e5, "f4")]
    )
    with VAE(bundle.path) as vae, VAE(bundle.path, "onnxruntime-cpu") as cpu:
        if vae.backend != backend_of(bundle):
            pytest.skip("another backend comes first")
        image = vae.decode(latent, output="float")
        if not any("run again in fp32" in message for message in caplog.messages):
            pytest.skip("the demo VAE holds even that")
        assert np.isfinite(image).all() == np.isfinite(cpu.decode(latent, output="float")).all()


def test_the_runtime_cache_is_kept(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend_of(bundle) != "tensorrt-rtx":
        pytest.skip("TensorRT-RTX alone compiles kernels when it runs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    latent = latents_of_photos(bundle, 1, 8, 8)
    for _ in range(2):
        vae = VAE(bundle.path, "tensorrt-rtx")
        vae.decode(latent)
        vae.close()
        del vae
        gc.collect()
    assert list((tmp_path / "vaedeploy" / "rtx").glob("*.cache"))
