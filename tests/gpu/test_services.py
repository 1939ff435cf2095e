"""What services run, on a real GPU: a pipeline of diffusers, and a server that joins requests. Skipped where there is
no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import on_gpu
import pytest
import torch

from vaedeploy.pipeline.export import export_vae
from vaedeploy.runtime import VAE, onnxruntime_cuda

pytest.importorskip("diffusers")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(onnxruntime_cuda.problem() is not None, reason=str(onnxruntime_cuda.problem())),
    pytest.mark.filterwarnings("ignore:.*was never verified"),
    pytest.mark.filterwarnings("ignore:::diffusers"),
]

ROUNDING = 1e-4
"""Relative L2 between two computations in float32. TF32 is off in both."""

CLIENTS, REQUESTS = 8, 10


@pytest.fixture(scope="module")
def bundle(small_vae: Path, made_once: Callable[..., Path]) -> Path:
    """A small VAE of factor 8 in float32, not verified."""
    return (
        made_once("gpu small", lambda folder: export_vae(str(small_vae), out=folder / "small", verify=False)) / "small"
    )


@pytest.fixture
def original(small_vae: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from diffusers import AutoencoderKL

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return AutoencoderKL.from_pretrained(small_vae, low_cpu_mem_usage=False).eval().to("cuda")


@pytest.fixture
def ours(bundle: Path) -> Iterator[Any]:
    from vaedeploy.adapters.diffusers import BundleVAE

    with VAE(bundle, "onnxruntime-cuda") as vae:
        yield BundleVAE(vae).to("cuda")


@torch.no_grad()
def test_the_drop_in_computes_on_the_gpu_what_the_vae_does(original: Any, ours: Any) -> None:
    """In float32 without a copy, and in half precision, whose tensors are converted there."""
    torch.manual_seed(0)
    latent, image = torch.randn(2, 4, 8, 12, device="cuda"), torch.rand(2, 3, 64, 96, device="cuda") * 2 - 1
    for dtype, limit in ((torch.float32, ROUNDING), (torch.float16, on_gpu.FP16)):
        ours.to(dtype)
        decoded, encoded = ours.decode(latent.to(dtype)).sample, ours.encode(image.to(dtype)).latent_dist
        assert (decoded.device.type, decoded.dtype) == (encoded.mean.device.type, encoded.mean.dtype) == ("cuda", dtype)
        wanted = original.encode(image).latent_dist
        for found, expected in (
            (decoded, original.decode(latent).sample),
            (encoded.mean, wanted.mean),
            (encoded.std, wanted.std),
        ):
            assert on_gpu.relative_l2(found.float().cpu().numpy(), expected.cpu().numpy()) < limit
        noise = [torch.Generator("cuda").manual_seed(1) for _ in range(2)]
        found, expected = (each.sample(one).float().cpu() for each, one in zip((encoded, wanted), noise, strict=True))
        assert on_gpu.relative_l2(found.numpy(), expected.numpy()) < max(limit, on_gpu.FP16)


@pytest.mark.parametrize("task", ["", "Img2Img"])
def test_a_pipeline_on_the_gpu(task: str, original: Any, ours: Any) -> None:
    small_pipelines = pytest.importorskip("small_pipelines")
    made = small_pipelines.sd(4)
    images = []
    for vae in (ours, original):
        pipe = small_pipelines.pipeline("StableDiffusion", task, vae, made).to("cuda")
        prompt = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in made.prompt.items()}
        images.append(small_pipelines.images_of(pipe, small_pipelines.Made(made.components, prompt), task))
    assert images[1].std() > 0.01
    np.testing.assert_allclose(images[0], images[1], rtol=0, atol=1e-3)


def test_a_server_joins_requests_on_a_gpu(bundle: Path) -> None:
    """Without being told to: eight clients, three sizes, each answer that of a call of its own."""
    pytest.importorskip("tritonclient.http")
    pytest.importorskip("uvicorn")
    from serving import ask, serving

    random = np.random.default_rng(0)
    sizes = [(8, 8), (8, 12), (16, 8)]
    given = [random.normal(size=(1, 4, *sizes[n % 3])).astype(np.float32) for n in range(CLIENTS * REQUESTS)]
    outputs = {"image_u8": True, "finite": True}
    with VAE(bundle, "onnxruntime-cuda") as vae:
        wanted = [vae.decode(latent) for latent in given]

        def client(number: int) -> list[dict[str, np.ndarray]]:
            with server.triton() as connection:
                return [ask(connection, "small-decode", latent, outputs) for latent in given[number::CLIENTS]]

        with serving({"small": vae}, max_delay=0.02) as server, ThreadPoolExecutor(CLIENTS) as pool:
            found = list(pool.map(client, range(CLIENTS)))
            joined = [line["joined"] for line in server.log if line["path"].endswith("infer")]
        assert vae.backend == "onnxruntime-cuda"
    for number, answers in enumerate(found):
        for answer, right in zip(answers, wanted[number::CLIENTS], strict=True):
            assert answer["finite"].all()
            assert on_gpu.near(answer["image_u8"], right)
    assert len(joined) == len(given)
    assert max(joined) > 1
