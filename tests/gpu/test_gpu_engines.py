"""TensorRT and TensorRT-RTX engines behind the runtime, on a real device. Skipped where there is none, or no
backend.
"""

from __future__ import annotations

import gc
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vaedeploy.bundle import Bundle
from vaedeploy.engines.profile import CAPABILITIES
from vaedeploy.errors import BackendError, InputError, SizeError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.pipeline.export import export_vae
from vaedeploy.pipeline.verify import verify_bundle
from vaedeploy.runtime import VAE
from vaedeploy.runtime.backends import ENGINES, problem_of
from vaedeploy.system.gpu import find_gpu

torch = pytest.importorskip("torch")
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


def latents(bundle: Bundle, batch: int, height: int, width: int) -> np.ndarray:
    """Of a photograph: what no photograph gives proves nothing."""
    from vaedeploy.images.photos import crop_batch, load_photos
    from vaedeploy.verify.shapes import Shape

    with VAE(bundle.path, "onnxruntime-cpu") as cpu:
        return cpu.encode(crop_batch(load_photos(), Shape("", batch, height * 8, width * 8, False)))


def near(found: np.ndarray, expected: np.ndarray) -> bool:
    """Within a level of 255: contexts may choose kernels that add in another order."""
    return bool(np.abs(found.astype(int) - expected).max() <= 1)


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
    latent = latents(bundle, batch, height, width)
    with VAE(bundle.path, "onnxruntime-cpu") as cpu:
        for _ in range(3):  # the third is a CUDA graph
            assert np.abs(vae.decode(latent).astype(int) - cpu.decode(latent)).max() <= 3
        photo = cpu.decode(latent)
        found, expected = vae.encode(photo), cpu.encode(photo)
        assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected)


def test_arrays_of_pytorch_stay_on_the_gpu(bundle: Bundle, vae: VAE) -> None:
    latent = torch.from_numpy(latents(bundle, 2, 16, 16)).cuda()
    image = torch.from_dlpack(vae.decode(latent))
    assert (image.device.type, image.dtype, tuple(image.shape)) == ("cuda", torch.uint8, (2, 128, 128, 3))
    assert near(image.cpu().numpy(), vae.decode(latent.cpu().numpy()))
    kept = image.clone()
    vae.decode(latent * 0)
    assert torch.equal(image, kept), "the next call wrote into a result"
    out = torch.empty(2, 3, 128, 128, device="cuda")
    assert vae.decode(latent, output="float", out=out) is out
    again = torch.from_dlpack(vae.encode(out))
    assert tuple(again.shape) == tuple(latent.shape)
    cut = torch.from_dlpack(vae.decode(latent, size=(125, 127)))
    assert near(cut.cpu().numpy(), image[:, :125, :127].cpu().numpy())


def test_a_thread_of_its_own(bundle: Bundle, vae: VAE) -> None:
    """Such a thread has no CUDA context until somebody makes one current."""
    latent = torch.from_numpy(latents(bundle, 1, 16, 16)).cuda()
    image = torch.rand(1, 3, 128, 128, device="cuda") * 2 - 1
    torch.cuda.synchronize()
    with ThreadPoolExecutor(1) as thread:
        decoded, encoded = thread.submit(lambda: (vae.decode(latent), vae.encode(image))).result()
    assert near(torch.from_dlpack(decoded).cpu().numpy(), vae.decode(latent.cpu().numpy()))
    found, expected = torch.from_dlpack(encoded).cpu().numpy(), vae.encode(image.cpu().numpy())
    assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected)


def test_a_result_outlives_the_call_that_reads_it(bundle: Bundle, vae: VAE) -> None:
    """Work in the default stream reads a result that nobody has any more, while the next ones are made."""
    given = [torch.from_numpy(latents(bundle, 1, 8, 8) * factor).cuda() for factor in (1.0, 0.0)]
    expected = torch.from_dlpack(vae.decode(given[0])).clone()
    torch.cuda.synchronize()
    for _ in range(20):
        image = torch.from_dlpack(vae.decode(given[0]))
        torch.cuda._sleep(20_000_000)
        copy = image.clone()
        del image
        vae.decode(given[1])
        assert torch.equal(copy, expected)


def test_work_of_another_stream_is_waited_for(bundle: Bundle, vae: VAE) -> None:
    latent = torch.from_numpy(latents(bundle, 1, 16, 16)).cuda()
    expected = torch.from_dlpack(vae.decode(latent)).clone()
    given = torch.zeros_like(latent)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        given.copy_(latent)
        assert near(torch.from_dlpack(vae.decode(given)).cpu().numpy(), expected.cpu().numpy())


def test_many_threads(bundle: Bundle, vae: VAE) -> None:
    given = [latents(bundle, 1, 8 + n, 8) for n in range(6)] * 4
    alone = [vae.decode(latent) for latent in given]
    with ThreadPoolExecutor(6) as threads:
        for found, expected in zip(threads.map(vae.decode, given), alone, strict=True):
            assert near(found, expected)


def test_what_no_engine_takes(bundle: Bundle, vae: VAE, caplog: pytest.LogCaptureFixture) -> None:
    large = latents(bundle, 1, 40, 8)
    with pytest.raises(SizeError, match="no engine takes 1x320x64"):
        vae.decode(large)
    with caplog.at_level(logging.WARNING), VAE(bundle.path) as any_backend:
        assert any_backend.decode(large).shape == (1, 320, 64, 3)


def test_graphs_are_used(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """What could not be captured is told."""
    latent = latents(bundle, 1, 8, 8)
    with VAE(bundle.path, backend_of(bundle)) as fresh:
        for _ in range(4):
            fresh.decode(latent)
    assert not [message for message in caplog.messages if "CUDA graphs" in message]


def test_another_gpu_or_stream_is_refused(bundle: Bundle, vae: VAE) -> None:
    latent = torch.from_numpy(latents(bundle, 1, 8, 8)).cuda()
    with pytest.raises(InputError, match="stream is of type str; it must be a CUDA stream"):
        vae.decode(latent, stream="stream")
    with pytest.raises(BackendError, match="there is no CUDA device 63"):
        VAE(bundle.path, backend_of(bundle), device=63)


def test_out_of_memory_and_then_another_call(bundle: Bundle) -> None:
    latent = latents(bundle, 2, 32, 32)
    with VAE(bundle.path, backend_of(bundle)) as fresh:
        expected = fresh.decode(latent)
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - 8 * 2**20, dtype=torch.uint8, device="cuda")
    crowded = VAE(bundle.path, backend_of(bundle))
    with pytest.raises(BackendError):
        crowded.decode(latent)
    del taken
    torch.cuda.empty_cache()
    assert near(crowded.decode(latent), expected)


def test_nan_is_run_again_in_fp32(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """The engines are fp16, and ONNX Runtime has the graphs in float32."""
    latent = np.concatenate([latents(bundle, 1, 8, 8), np.full((1, bundle.manifest.latent.channels, 8, 8), 3e5, "f4")])
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
    latent = latents(bundle, 1, 8, 8)
    for _ in range(2):
        vae = VAE(bundle.path, "tensorrt-rtx")
        vae.decode(latent)
        vae.close()
        del vae
        gc.collect()
    assert list((tmp_path / "vaedeploy" / "rtx").glob("*.cache"))
