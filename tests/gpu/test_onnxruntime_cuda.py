"""ONNX Runtime's CUDA provider behind the runtime, on a real device. Skipped where there is none."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError
from vaedeploy.pipeline.export import export_vae
from vaedeploy.runtime import VAE, onnxruntime_cuda
from vaedeploy.values.kinds import PARTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(onnxruntime_cuda.problem() is not None, reason=str(onnxruntime_cuda.problem())),
]

FP32 = 1e-4
"""Relative L2 between the GPU's float32 and the CPU's. TF32 is off: with it, 1e-3 is to be expected."""

FP16 = 1e-2
"""The same for half precision, which the CPU computes in float32 between roundings of weights."""


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("gpu") / "demo"
    return export_vae("demo", out=out, precision=request.param, verify=False)


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def latents(bundle: Bundle, batch: int, height: int, width: int) -> np.ndarray:
    shape = batch, bundle.manifest.latent.channels, height, width
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def quiet(bundle: Bundle, backend: str | None = None) -> VAE:
    """The bundle in the runtime; that it is unverified is known."""
    with pytest.warns(UserWarning, match="was never verified"):
        return VAE(bundle.path, backend)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (3, 9, 11), (1, 64, 64), (2, 96, 64)])
def test_the_gpu_computes_what_the_cpu_does(bundle: Bundle, batch: int, height: int, width: int) -> None:
    limit = FP16 if bundle.manifest.precision == "fp16" else FP32
    latent = latents(bundle, batch, height, width)
    with quiet(bundle, "onnxruntime-cuda") as vae, quiet(bundle, "onnxruntime-cpu") as cpu:
        found, expected = (v.decode(latent, output="float") for v in (vae, cpu))
        assert relative_l2(found, expected) < limit
        assert np.abs(vae.decode(latent).astype(int) - cpu.decode(latent)).max() <= 255 * limit * 4
        photo = cpu.decode(latent)
        assert relative_l2(vae.encode(photo), cpu.encode(photo)) < limit


def test_nothing_large_is_computed_on_the_cpu(bundle: Bundle) -> None:
    """What is left there works on shapes. The rest would travel between the two in every call."""
    import onnxruntime

    for part in PARTS:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(bundle.graph(part, "onnxruntime"), options, providers=providers)
        nodes = [
            (group.ep_name, node.op_type)
            for group in session.get_provider_graph_assignment_info()
            for node in group.get_nodes()
        ]
        on_cpu = {operator for provider, operator in nodes if provider == "CPUExecutionProvider"}
        layers = {"Conv", "ConvTranspose", "InstanceNormalization", "MatMul", "Softmax", "Resize", "Sigmoid"}
        ends = {"Transpose", "Round", "Clip", "IsNaN", "IsInf", "ReduceMean", "ReduceSum", "ReduceMin"}
        assert on_cpu.isdisjoint(layers | ends)


def test_arrays_of_pytorch_stay_on_the_gpu(bundle: Bundle) -> None:
    """From a thread that has no CUDA context of its own, too."""
    torch = pytest.importorskip("torch")
    latent = torch.from_numpy(latents(bundle, 2, 16, 16)).cuda()
    image = torch.rand(2, 3, 128, 128, device="cuda") * 2 - 1
    torch.cuda.synchronize()
    with quiet(bundle, "onnxruntime-cuda") as vae, ThreadPoolExecutor(1) as thread:
        for run in (lambda call: call(), lambda call: thread.submit(call).result()):
            decoded = torch.from_dlpack(run(lambda: vae.decode(latent, output="float")))
            encoded = torch.from_dlpack(run(lambda: vae.encode(image)))
            assert (decoded.device.type, encoded.device.type) == ("cuda", "cuda")
            assert relative_l2(decoded.cpu().numpy(), vae.decode(latent.cpu().numpy(), output="float")) < FP16
            assert relative_l2(encoded.cpu().numpy(), vae.encode(image.cpu().numpy())) < FP16


def test_the_gpu_is_the_first_choice(bundle: Bundle) -> None:
    with quiet(bundle) as vae:
        vae.decode(latents(bundle, 1, 8, 8))
        assert vae.backend == "onnxruntime-cuda"


def test_many_threads(bundle: Bundle) -> None:
    given = [latents(bundle, 1, 8 + n, 8) for n in range(8)]
    with quiet(bundle, "onnxruntime-cuda") as vae, ThreadPoolExecutor(4) as pool:
        alone = [vae.decode(latent) for latent in given]
        for found, expected in zip(pool.map(vae.decode, given), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_out_of_memory_and_then_a_smaller_call(bundle: Bundle) -> None:
    options = {"gpu_mem_limit": str(256 * 2**20)}
    with pytest.warns(UserWarning, match="was never verified"):
        vae = VAE(bundle.path, "onnxruntime-cuda", provider_options=options)
    with vae:
        with pytest.raises(BackendError, match="not enough memory: give a smaller batch or size"):
            vae.decode(latents(bundle, 4, 256, 256))
        assert vae.decode(latents(bundle, 1, 8, 8)).shape == (1, 64, 64, 3)


def _decode_in_child(vae: VAE, latent: np.ndarray, answers: multiprocessing.Queue[str]) -> None:
    try:
        vae.decode(latent)
        answers.put("no error")
    except BackendError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told(bundle: Bundle) -> None:
    latent = latents(bundle, 1, 8, 8)
    fork = multiprocessing.get_context("fork")
    with quiet(bundle, "onnxruntime-cuda") as vae:
        vae.decode(latent)
        answers: multiprocessing.Queue[str] = fork.Queue()
        child = fork.Process(target=_decode_in_child, args=(vae, latent, answers))
        child.start()
        assert answers.get(timeout=60).startswith("this process was forked after the GPU was used")
        child.join()


def test_a_device_that_is_not_there(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"^there is no CUDA device 63: the driver shows "):
        VAE(bundle.path, "onnxruntime-cuda", device=63)


def test_full_size(tmp_path: Path) -> None:
    """Seeded weights, 512x512, in fp16."""
    out = tmp_path / "mse840k"
    made = export_vae("mse840k", weights="random:0", out=out, precision="fp16", verify=False)
    latent = latents(made, 1, 64, 64)
    with quiet(made, "onnxruntime-cuda") as vae, quiet(made, "onnxruntime-cpu") as cpu:
        found, expected = (v.decode(latent, output="float") for v in (vae, cpu))
        assert relative_l2(found, expected) < FP16
