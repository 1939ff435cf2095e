"""What everything that computes on a GPU must keep, on a real device: streams, memory and threads. tests/gpu asks it of
engines and of ONNX Runtime's CUDA provider.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, InputError
from vaedeploy.images.photos import crop_batch, load_photos
from vaedeploy.runtime import VAE

MILLISECOND = 2_000_000
"""Cycles that ``torch.cuda._sleep`` takes for about that long, on a GPU of 2 GHz."""

FP16 = 1e-2
"""Relative L2 between half precision on the GPU and the same graph on the CPU, which computes in float32 between
roundings."""


def latents_of_photos(bundle: Bundle, batch: int, height: int, width: int) -> np.ndarray:
    """Of photographs, as the bundle's encoder gives them on the CPU: what no photograph gives proves nothing."""
    with VAE(bundle.path, "onnxruntime-cpu") as cpu:
        return cpu.encode(crop_batch(load_photos(), batch, height * 8, width * 8))


def near(found: np.ndarray, expected: np.ndarray) -> bool:
    """Within a level of 255: contexts may choose kernels that add in another order."""
    return bool(np.abs(found.astype(int) - expected).max() <= 1)


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def fetched(array: Any) -> np.ndarray:
    """A result in the GPU's memory, copied to the host by PyTorch."""
    return torch.from_dlpack(array).cpu().numpy()


def check_arrays_of_pytorch(vae: VAE, latent: np.ndarray) -> None:
    """Results stay on the GPU, are the caller's, can be cut and put into the caller's own arrays, and encoded again."""
    batch, _, height, width = latent.shape
    full = (8 * height, 8 * width)
    given = torch.from_numpy(latent).cuda()
    image = torch.from_dlpack(vae.decode(given))
    assert (image.device.type, image.dtype, tuple(image.shape)) == ("cuda", torch.uint8, (batch, *full, 3))
    assert near(image.cpu().numpy(), vae.decode(latent))
    kept = image.clone()
    vae.decode(given * 0)
    assert torch.equal(image, kept), "the next call wrote into a result"
    cut = torch.from_dlpack(vae.decode(given, size=(full[0] - 3, full[1] - 1)))
    assert near(cut.cpu().numpy(), image[:, : full[0] - 3, : full[1] - 1].cpu().numpy())
    out = torch.empty(batch, *full, 3, dtype=torch.uint8, device="cuda")
    assert vae.decode(given, out=out) is out
    assert near(out.cpu().numpy(), kept.cpu().numpy())
    raw = torch.empty(batch, 3, *full, device="cuda")
    assert vae.decode(given, output="float", out=raw) is raw
    assert relative_l2(raw.cpu().numpy(), vae.decode(latent, output="float")) < FP16
    photo = raw.clamp(-1, 1)
    again = torch.from_dlpack(vae.encode(photo))
    assert (again.device.type, tuple(again.shape)) == ("cuda", latent.shape)
    assert relative_l2(again.cpu().numpy(), vae.encode(photo.cpu().numpy())) < FP16


def check_a_thread_of_its_own(vae: VAE, latent: np.ndarray) -> None:
    """Such a thread has no CUDA context until somebody makes one current."""
    given = torch.from_numpy(latent).cuda()
    photo = torch.rand(latent.shape[0], 3, 8 * latent.shape[2], 8 * latent.shape[3], device="cuda") * 2 - 1
    torch.cuda.synchronize()
    with ThreadPoolExecutor(1) as thread:
        decoded, encoded = thread.submit(lambda: (vae.decode(given), vae.encode(photo))).result()
    assert near(fetched(decoded), vae.decode(latent))
    assert relative_l2(fetched(encoded), vae.encode(photo.cpu().numpy())) < FP16


def check_a_result_outlives_what_reads_it(vae: VAE, latent: np.ndarray) -> None:
    """Work in the default stream still reads a result that nobody has any more while the next results are made.

    The next calls are made from another stream: they do not wait for the default stream, as those from it would.
    """
    given = torch.from_numpy(latent).cuda()
    other = given * 0
    expected = torch.from_dlpack(vae.decode(given)).clone()
    elsewhere = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(10):
        image = torch.from_dlpack(vae.decode(given))
        torch.cuda._sleep(20 * MILLISECOND)
        copy = image.clone()
        del image
        with torch.cuda.stream(elsewhere):
            vae.decode(other)
        assert near(copy.cpu().numpy(), expected.cpu().numpy())


def check_another_stream_is_waited_for(vae: VAE, latent: np.ndarray) -> None:
    """The stream that is PyTorch's current one, and one that is named."""
    source = torch.from_numpy(latent).cuda()
    expected = fetched(vae.decode(source))
    stream = torch.cuda.Stream()
    for named in (False, True):
        given = torch.zeros_like(source)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100 * MILLISECOND)
            given.copy_(source)
            image = None if named else vae.decode(given)
        if named:
            image = vae.decode(given, stream=stream)
        assert near(fetched(image), expected)


def check_out_is_not_written_too_early(vae: VAE, latent: np.ndarray) -> None:
    """The caller's array is still being read in the stream that it belongs to when it is given as ``out``."""
    given = torch.from_numpy(latent).cuda()
    out = torch.empty(*fetched(vae.decode(given)).shape, dtype=torch.uint8, device="cuda").fill_(7)
    torch.cuda.synchronize()
    torch.cuda._sleep(100 * MILLISECOND)
    kept = out.clone()
    vae.decode(given, out=out)
    assert bool((kept == 7).all())


def check_many_threads(vae: VAE, given: Sequence[np.ndarray]) -> None:
    """Six threads, each with arrays of the host's and with arrays in the GPU's memory, in a stream of its own."""
    alone = [vae.decode(latent) for latent in given]

    def on_gpu(latent: np.ndarray) -> np.ndarray:
        with torch.cuda.stream(torch.cuda.Stream()):
            return fetched(vae.decode(torch.from_numpy(latent).cuda()))

    with ThreadPoolExecutor(6) as threads:
        for call in (vae.decode, on_gpu):
            for found, expected in zip(threads.map(call, [*given] * 2), alone * 2, strict=True):
                assert near(found, expected)


def check_memory_of_results_comes_back(vae: VAE, latent: np.ndarray) -> None:
    """Results that are let go of are used for the next ones."""
    given = torch.from_numpy(latent).cuda()
    size = 0
    for _ in range(3):
        size = torch.from_dlpack(vae.decode(given, output="float")).nbytes
    torch.cuda.synchronize()
    before, _ = torch.cuda.mem_get_info()
    for _ in range(30):
        vae.decode(given, output="float")
    torch.cuda.synchronize()
    after, _ = torch.cuda.mem_get_info()
    assert before - after < 10 * size


def check_out_of_memory_and_then_another_call(
    open_vae: Callable[[], VAE],
    small: np.ndarray,
    large: np.ndarray,
    said: str = "",
    by_rows: bool = False,
) -> None:
    """With the GPU full, ``large`` is refused from either memory; the same VAE computes it when there is room again.

    small: runs before the GPU is full, so that what is loaded once is. said: a pattern of what the refusals say.
    by_rows: whether ``large`` may be computed nevertheless, in what little memory there is.
    """
    with open_vae() as fresh:
        expected = fresh.decode(large)
    given = torch.from_numpy(large).cuda()
    with open_vae() as crowded:
        crowded.decode(small)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        taken = torch.empty(free - 8 * 2**20, dtype=torch.uint8, device="cuda")
        try:
            for latent in (large, given):
                found, refused = None, ""
                try:
                    found = crowded.decode(latent)
                except BackendError as error:
                    refused = str(error)
                assert re.search(said, refused) if found is None else by_rows
                assert found is None or relative_l2(fetched(found).astype(float), expected) < FP16
        finally:
            del taken
            torch.cuda.empty_cache()
        assert near(crowded.decode(large), expected)
        assert near(fetched(crowded.decode(given)), expected)
    torch.cuda.synchronize()  # PyTorch has no error of the failed calls to report


def check_another_gpu_or_stream_is_refused(vae: VAE, latent: np.ndarray) -> None:
    with pytest.raises(InputError, match="stream is of type str; it must be a CUDA stream"):
        vae.decode(torch.from_numpy(latent).cuda(), stream="stream")
    with pytest.raises(BackendError, match="there is no CUDA device 63"):
        VAE(vae.path, vae.backend, device=63)
